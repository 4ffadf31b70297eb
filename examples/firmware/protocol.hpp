// The framed protocol's frame, for a microcontroller: C++17 without heap, exceptions, RTTI or operating system.
//
//     offset  size  field
//     0       2     magic: A7 4C
//     2       1     version: 1
//     3       1     command; the answer has bit 7 set, an error is FF
//     4       4     sequence number
//     8       4     length n of the payload
//     12      4     CRC-32 of the 12 bytes before
//     16      n     payload
//     16 + n  4     CRC-32 of the payload, continued from that of the header
//
// All numbers are little-endian. They are composed byte by byte, so that the byte order and the alignment of the
// machine do not matter.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace astralora {

// -- numbers ---------------------------------------------------------------------------------------------------

static_assert(sizeof(float) == 4 && std::numeric_limits<float>::is_iec559, "values travel as IEEE 754 float32");

inline std::uint32_t get_u32(const std::uint8_t* from) {
  // Widened first: where int has 16 bits, a shift by 24 would be lost.
  return static_cast<std::uint32_t>(from[0]) | static_cast<std::uint32_t>(from[1]) << 8 |
         static_cast<std::uint32_t>(from[2]) << 16 | static_cast<std::uint32_t>(from[3]) << 24;
}

inline void put_u16(std::uint8_t* to, std::uint16_t value) {
  to[0] = static_cast<std::uint8_t>(value & 0xFF);
  to[1] = static_cast<std::uint8_t>(value >> 8);
}

inline void put_u32(std::uint8_t* to, std::uint32_t value) {
  for (int i = 0; i < 4; ++i, value >>= 8) to[i] = static_cast<std::uint8_t>(value & 0xFF);
}

inline float get_f32(const std::uint8_t* from) {
  const std::uint32_t bits = get_u32(from);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void put_f32(std::uint8_t* to, float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  put_u32(to, bits);
}

// Checked by the bits and not by a comparison: compilers may assume that NaN is impossible (-ffast-math).
inline bool is_finite(const std::uint8_t* float32) { return (get_u32(float32) & 0x7F800000U) != 0x7F800000U; }

// CRC-32 of IEEE 802.3, updated byte by byte; four bits at a time, by a table of 64 bytes.
class Crc {
 public:
  void add(std::uint8_t byte) {
    step(byte);
    step(static_cast<std::uint8_t>(byte >> 4));
  }

  void add(const std::uint8_t* bytes, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) add(bytes[i]);
  }

  std::uint32_t value() const { return value_; }

 private:
  void step(std::uint8_t nibble) {
    static constexpr std::uint32_t kTable[16] = {
        0x00000000U, 0x1DB71064U, 0x3B6E20C8U, 0x26D930ACU, 0x76DC4190U, 0x6B6B51F4U, 0x4DB26158U, 0x5005713CU,
        0xEDB88320U, 0xF00F9344U, 0xD6D6A3E8U, 0xCB61B38CU, 0x9B64C2B0U, 0x86D3D2D4U, 0xA00AE278U, 0xBDBDF21CU};
    const std::uint32_t state = ~value_;
    value_ = ~(state >> 4 ^ kTable[(state ^ nibble) & 0xF]);
  }

  std::uint32_t value_ = 0;
};

// -- frames ----------------------------------------------------------------------------------------------------

constexpr std::uint8_t kMagic[2] = {0xA7, 0x4C};
constexpr std::uint8_t kVersion = 1;
constexpr std::uint8_t kAnswer = 0x80;
constexpr std::uint8_t kError = 0xFF;
constexpr std::size_t kFields = 12;
constexpr std::size_t kCheck = 4;
constexpr std::size_t kHeader = kFields + kCheck;

struct Header {
  std::uint8_t version;
  std::uint8_t command;
  std::uint32_t sequence;
  std::uint32_t length;
};

// Send one frame; Line has write(const uint8_t*, size_t), which returns when the bytes are on their way.
template <class Line>
void send_frame(Line& line, std::uint8_t command, std::uint32_t sequence, const std::uint8_t* payload,
                std::uint32_t length) {
  std::uint8_t header[kHeader] = {kMagic[0], kMagic[1], kVersion, command};
  put_u32(header + 4, sequence);
  put_u32(header + 8, length);
  Crc crc;
  crc.add(header, kFields);
  put_u32(header + kFields, crc.value());
  line.write(header, kHeader);
  if (length != 0) line.write(payload, length);
  crc.add(payload, length);
  std::uint8_t check[kCheck];
  put_u32(check, crc.value());
  line.write(check, kCheck);
}

// The result of one byte.
enum class Event : std::uint8_t {
  kNothing,
  kRequest,  // header() and payload() are complete, until the next byte is fed
  kTooLong,  // header() is complete, and its payload is too long; nothing of it is stored
  kDamaged,  // header() is complete, but its payload arrived damaged or incomplete
};

// Find frames on a line, one byte at a time, and skip all other bytes.
template <std::uint32_t MaxPayload>
class Parser {
 public:
  Event feed(std::uint8_t byte) { return in_payload_ ? feed_payload(byte) : feed_header(byte); }

  // Report that the line was silent: a frame that has begun will not be completed, and must not swallow the next one.
  Event silence() {
    const Event event = in_payload_ ? Event::kDamaged : Event::kNothing;
    in_payload_ = false;
    filled_ = 0;
    return event;
  }

  const Header& header() const { return header_; }
  const std::uint8_t* payload() const { return payload_; }
  // The second checksum of a complete frame, which covers header and payload.
  std::uint32_t check() const { return check_; }

 private:
  static_assert(MaxPayload <= 0xFFFFFFFFU - kCheck, "lengths are counted in 32 bits");

  Event feed_header(std::uint8_t byte) {
    window_[filled_++] = byte;
    if (filled_ < kHeader) return Event::kNothing;
    Crc crc;
    crc.add(window_, kFields);
    if (!magic_at(0) || crc.value() != get_u32(window_ + kFields)) {
      // No header begins here; keep the bytes that may be the beginning of one.
      std::size_t start = 1;
      while (start < kHeader && !magic_at(start)) ++start;
      filled_ = kHeader - start;
      std::memmove(window_, window_ + start, filled_);
      return Event::kNothing;
    }
    filled_ = 0;
    header_ = {window_[2], window_[3], get_u32(window_ + 4), get_u32(window_ + 8)};
    if (header_.length > MaxPayload) return Event::kTooLong;
    in_payload_ = true;
    received_ = 0;
    check_ = 0;
    crc_ = crc;
    return Event::kNothing;
  }

  Event feed_payload(std::uint8_t byte) {
    if (received_ < header_.length) {
      payload_[received_] = byte;
      crc_.add(byte);
    } else {
      check_ |= static_cast<std::uint32_t>(byte) << 8 * (received_ - header_.length);
    }
    if (++received_ < header_.length + kCheck) return Event::kNothing;
    in_payload_ = false;
    return check_ == crc_.value() ? Event::kRequest : Event::kDamaged;
  }

  bool magic_at(std::size_t start) const {
    // The last byte that arrived may be the first half of the magic.
    return window_[start] == kMagic[0] && (start + 1 == kHeader || window_[start + 1] == kMagic[1]);
  }

  Header header_{};
  Crc crc_;
  std::uint32_t check_ = 0;
  std::uint32_t received_ = 0;
  std::size_t filled_ = 0;
  bool in_payload_ = false;
  std::uint8_t window_[kHeader]{};
  std::uint8_t payload_[MaxPayload]{};
};

}  // namespace astralora
