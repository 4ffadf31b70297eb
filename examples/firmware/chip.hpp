// The application: a small matrix-vector chip, y = W x, behind the framed protocol.
//
// The first section describes one particular chip. All hardware is reached through the two template parameters;
// host.cpp shows how to fill them in.

#pragma once

#include "protocol.hpp"

namespace astralora {

// -- this chip -------------------------------------------------------------------------------------------------

constexpr std::uint32_t kInputs = 8;
constexpr std::uint32_t kOutputs = 6;
constexpr std::uint32_t kControls = kInputs * kOutputs;
constexpr std::uint32_t kLevels = 256;  // of the control DAC, over kLow to kHigh, both ends included
constexpr std::uint32_t kMaxBatch = 32;
constexpr std::uint32_t kMaxPayload = 2048;
constexpr float kLow = -1.0F;  // of inputs and of controls
constexpr float kHigh = 1.0F;

#define ASTRALORA_NAME "reference-chip"
#define ASTRALORA_SERIAL "REF-0001"

// Manufacturer, model, serial number, firmware version.
constexpr char kIdentity[] = "astralora," ASTRALORA_NAME "," ASTRALORA_SERIAL ",1.0";

// The spec for the host. Its numbers must agree with those above. For a real chip, state what holds on the bench:
// noise_std, and program_seconds and vector_seconds, which a host waits in addition to its timeout.
constexpr char kSpec[] =
    "{\"name\":\"" ASTRALORA_NAME "\",\"in_features\":8,\"out_features\":6,\"num_controls\":48,"
    "\"input_range\":[-1,1],\"control_range\":[-1,1],\"control_levels\":256,\"linear\":true,"
    "\"coupling\":\"elementwise\",\"idempotent_program\":true,\"max_batch\":32,"
    "\"serial_number\":\"" ASTRALORA_SERIAL "\"}";

// -- messages --------------------------------------------------------------------------------------------------

enum Command : std::uint8_t {
  kIdentify = 1,
  kTellSpec = 2,
  kProgram = 3,
  kQuery = 4,
  kQueryEach = 5,
  kStatus = 6,
  kSafe = 7,
  kWatchdog = 8,
};

enum Format : std::uint8_t { kFloat32 = 0, kUint8 = 1 };

constexpr std::uint32_t kOptionQueryEach = 1;
constexpr std::uint32_t kOptionWatchdog = 2;

constexpr std::uint32_t kProgramHead = 8;     // format, 3 unused, number of controls
constexpr std::uint32_t kQueryHead = 8;       // formats of inputs and answer, 2 unused, number of vectors
constexpr std::uint32_t kQueryEachHead = 12;  // formats of controls, inputs, answer, 1 unused, settings, vectors
constexpr std::uint32_t kValuesHead = 8;      // format, 3 unused, number of vectors
constexpr std::uint32_t kWatchdogLength = 4;  // milliseconds; 0 is off
constexpr std::uint32_t kStatusLength = 16;   // state, 3 unused, newest sequence number, programs, vectors
constexpr std::uint32_t kInputBytes = 4 * kInputs;
constexpr std::uint32_t kOutputBytes = 4 * kOutputs;

static_assert(kLevels <= 256, "codes are of 8 bits");
static_assert(kProgramHead + 4 * kControls <= kMaxPayload, "all controls must fit into one frame");
static_assert(kQueryHead + kMaxBatch * kInputBytes <= kMaxPayload, "the inputs of a batch must fit into one frame");
static_assert(kValuesHead + kMaxBatch * kOutputBytes <= kMaxPayload, "the answer to a batch must fit into one frame");

// An error, with its number in the protocol; 0 where there is none.
struct Failure {
  std::uint16_t number;
  const char* text;
};

constexpr Failure kNone{0, ""};
constexpr Failure out_of_range(const char* text) { return {2, text}; }
constexpr Failure not_connected(const char* text) { return {3, text}; }
constexpr Failure protocol_error(const char* text) { return {5, text}; }

// -- chip ------------------------------------------------------------------------------------------------------

// Answers requests.
//
// Line has write(const uint8_t* bytes, size_t count). Board has
//     write_control(size_t control, uint8_t code)   to the DAC of one control
//     settle()                                      wait until all controls hold
//     write_input(size_t input, float value)        to one modulator, within kLow to kHigh
//     read_output(size_t output) -> float           from one detector
//     switch_off()                                  bring everything into the safe state
template <class Board, class Line>
class Chip {
 public:
  // Call this first, once the converters are set up: it brings them into the safe state. A constructor cannot do it,
  // because static objects are made before anything is set up; and an object of zeros takes no flash.
  void begin(Board& board, Line& line) {
    board_ = &board;
    line_ = &line;
    make_safe();
  }

  // Take one byte from the line.
  void receive(std::uint8_t byte) { act(parser_.feed(byte)); }

  // Report that the line was silent: longer than a host pauses within a frame, shorter than it waits for an answer.
  void silence() { act(parser_.silence()); }

  // Report that this time has passed since the last call; call it often. If a host has set the watchdog, and no request
  // has arrived for its time, the chip becomes safe.
  void elapsed(std::uint32_t milliseconds) {
    if (watchdog_ == 0) return;
    if (was_asked_) {
      // Part of this time may have gone by before the answer, while the chip settled.
      was_asked_ = false;
      idle_ = 0;
    } else if (milliseconds >= watchdog_ - idle_) {
      make_safe();
    } else {
      idle_ += milliseconds;
    }
  }

  void make_safe() {
    board_->switch_off();
    is_programmed_ = false;
    // A repeated program must now be carried out, whatever its number.
    newest_ = Newest{};
    watchdog_ = 0;
  }

 private:
  // The newest operation that was carried out; its answer is in answer_.
  struct Newest {
    std::uint8_t command = 0;  // 0 where there is none
    std::uint32_t sequence = 0;
    std::uint32_t check = 0;   // second checksum of its frame
    std::uint32_t length = 0;  // of its answer
  };

  void act(Event event) {
    if (event != Event::kNothing) was_asked_ = true;
    switch (event) {
      case Event::kNothing:
        break;
      case Event::kRequest:
        respond();
        break;
      case Event::kTooLong:
        fail(protocol_error("the payload is longer than is taken here"));
        break;
      case Event::kDamaged:
        fail(protocol_error("the payload arrived damaged, or not whole"));
        break;
    }
  }

  void respond() {
    const Header& header = parser_.header();
    const std::uint8_t* payload = parser_.payload();
    if (header.version != kVersion) return fail(protocol_error("only version 1 is spoken here"));
    switch (header.command) {
      case kIdentify:
        put_u32(scratch_, kMaxPayload);
        put_u32(scratch_ + 4, kOptionQueryEach | kOptionWatchdog);
        return reply(scratch_, 8 + append(8, kIdentity));
      case kTellSpec:
        return reply(reinterpret_cast<const std::uint8_t*>(kSpec), sizeof kSpec - 1);
      case kStatus:
        put_u32(scratch_, is_programmed_ ? 1 : 0);
        put_u32(scratch_ + 4, newest_.sequence);
        put_u32(scratch_ + 8, programs_);
        put_u32(scratch_ + 12, vectors_);
        return reply(scratch_, kStatusLength);
      case kSafe:
        make_safe();
        return reply(nullptr, 0);
      case kWatchdog:
        if (header.length != kWatchdogLength) return fail(protocol_error("a watchdog has 4 bytes"));
        watchdog_ = get_u32(payload);
        return reply(nullptr, 0);
      case kProgram:
      case kQuery:
      case kQueryEach:
        return operate(header, payload);
      default:
        return fail(protocol_error("there is no such command"));
    }
  }

  void operate(const Header& header, const std::uint8_t* payload) {
    // The host repeats a request whose answer was lost: send the answer, and carry nothing out twice. The checksum tells
    // it from the request of another host that counts from the same number.
    if (newest_.command == header.command && newest_.sequence == header.sequence && newest_.check == parser_.check()) {
      return reply(answer_, newest_.length);
    }
    std::uint32_t length = 0;
    const Failure failure = header.command == kProgram ? program(payload, header.length)
                            : header.command == kQuery ? query(payload, header.length, length)
                                                       : query_each(payload, header.length, length);
    // A request that failed may be tried again under its number. It has not changed answer_.
    if (failure.number != 0) return fail(failure);
    newest_.command = header.command;
    newest_.sequence = header.sequence;
    newest_.check = parser_.check();
    newest_.length = length;
    reply(answer_, length);
  }

  Failure program(const std::uint8_t* payload, std::uint32_t length) {
    if (length < kProgramHead) return protocol_error(kTooShort);
    const std::uint8_t format = payload[0];
    if (control_bytes(format) == 0) return protocol_error(kControlFormats);
    if (get_u32(payload + 4) != kControls || length - kProgramHead != kControls * control_bytes(format)) {
      return out_of_range("this is not the number of controls that the spec tells");
    }
    if (!controls_are_legal(payload + kProgramHead, format, 1)) return out_of_range(kIllegalControls);
    write_controls(payload + kProgramHead, format);
    return kNone;
  }

  Failure query(const std::uint8_t* payload, std::uint32_t length, std::uint32_t& answered) {
    if (length < kQueryHead) return protocol_error(kTooShort);
    if (payload[0] != kFloat32 || payload[1] != kFloat32) return protocol_error(kValueFormats);
    const std::uint32_t batch = get_u32(payload + 4);
    const std::uint8_t* inputs = payload + kQueryHead;
    // Bound the batch before multiplying it.
    if (batch > kMaxBatch) return out_of_range(kBatchTooLarge);
    if (length - kQueryHead != batch * kInputBytes) return out_of_range(kInputCount);
    if (!inputs_are_legal(inputs, batch)) return out_of_range(kIllegalInputs);
    if (!is_programmed_) return not_connected("no controls are set; send PROGRAM first");
    answered = begin_answer(batch);
    answered = pass(inputs, batch, answered);
    return kNone;
  }

  Failure query_each(const std::uint8_t* payload, std::uint32_t length, std::uint32_t& answered) {
    if (length < kQueryEachHead) return protocol_error(kTooShort);
    const std::uint8_t format = payload[0];
    if (control_bytes(format) == 0) return protocol_error(kControlFormats);
    if (payload[1] != kFloat32 || payload[2] != kFloat32) return protocol_error(kValueFormats);
    const std::uint32_t settings = get_u32(payload + 4);
    const std::uint32_t batch = get_u32(payload + 8);
    if (batch > kMaxBatch) return out_of_range(kBatchTooLarge);
    // Each setting takes some bytes of the payload, so more of them than bytes cannot be right.
    if (settings == 0 || settings > length) return out_of_range("the settings are none, or more than came");
    const std::uint32_t setting_bytes = kControls * control_bytes(format);
    const std::uint64_t due = std::uint64_t{settings} * setting_bytes + batch * kInputBytes;
    if (length - kQueryEachHead != due) return out_of_range("these are not as many controls and inputs as were told");
    if (kValuesHead + std::uint64_t{settings} * batch * kOutputBytes > kMaxPayload) {
      return out_of_range("the answer would be too long; send fewer settings at a time");
    }
    const std::uint8_t* controls = payload + kQueryEachHead;
    const std::uint8_t* inputs = controls + settings * setting_bytes;
    if (!controls_are_legal(controls, format, settings)) return out_of_range(kIllegalControls);
    if (!inputs_are_legal(inputs, batch)) return out_of_range(kIllegalInputs);
    answered = begin_answer(settings * batch);
    for (std::uint32_t s = 0; s < settings; ++s) {
      write_controls(controls + s * setting_bytes, format);
      answered = pass(inputs, batch, answered);
    }
    return kNone;
  }

  // -- values

  static std::uint32_t control_bytes(std::uint8_t format) {
    return format == kFloat32 ? 4 : format == kUint8 ? 1 : 0;
  }

  static bool is_legal(const std::uint8_t* float32) {
    // Scaling in float32 on the host may exceed an end by this much.
    constexpr float kSlack = 1e-6F * (kHigh - kLow);
    if (!is_finite(float32)) return false;
    const float value = get_f32(float32);
    return value >= kLow - kSlack && value <= kHigh + kSlack;
  }

  static bool controls_are_legal(const std::uint8_t* controls, std::uint8_t format, std::uint32_t settings) {
    for (std::uint32_t i = 0; i < settings * kControls; ++i) {
      // Widened, because compilers warn of a comparison that cannot fail where all 256 codes are legal.
      if (format == kFloat32 ? !is_legal(controls + 4 * i) : std::uint32_t{controls[i]} >= kLevels) return false;
    }
    return true;
  }

  static bool inputs_are_legal(const std::uint8_t* inputs, std::uint32_t batch) {
    for (std::uint32_t i = 0; i < batch * kInputs; ++i) {
      if (!is_legal(inputs + 4 * i)) return false;
    }
    return true;
  }

  static float clamped(float value) { return value < kLow ? kLow : value > kHigh ? kHigh : value; }

  static std::uint8_t code_of(float value) {
    constexpr float kScale = static_cast<float>(kLevels - 1) / (kHigh - kLow);
    return static_cast<std::uint8_t>((clamped(value) - kLow) * kScale + 0.5F);
  }

  void write_controls(const std::uint8_t* controls, std::uint8_t format) {
    for (std::uint32_t i = 0; i < kControls; ++i) {
      board_->write_control(i, format == kFloat32 ? code_of(get_f32(controls + 4 * i)) : controls[i]);
    }
    board_->settle();
    is_programmed_ = true;
    ++programs_;
  }

  std::uint32_t begin_answer(std::uint32_t rows) {
    put_u32(answer_, kFloat32);
    put_u32(answer_ + 4, rows);
    return kValuesHead;
  }

  // Pass the vectors, write the measured outputs into the answer from `end` on, and return the new end.
  std::uint32_t pass(const std::uint8_t* inputs, std::uint32_t batch, std::uint32_t end) {
    for (std::uint32_t b = 0; b < batch; ++b, inputs += kInputBytes) {
      for (std::uint32_t j = 0; j < kInputs; ++j) board_->write_input(j, clamped(get_f32(inputs + 4 * j)));
      for (std::uint32_t i = 0; i < kOutputs; ++i, end += 4) put_f32(answer_ + end, board_->read_output(i));
      ++vectors_;
    }
    return end;
  }

  // -- answers

  void reply(const std::uint8_t* payload, std::uint32_t length) {
    const Header& header = parser_.header();
    send_frame(*line_, static_cast<std::uint8_t>(header.command | kAnswer), header.sequence, payload, length);
  }

  void fail(const Failure& failure) {
    put_u16(scratch_, failure.number);
    send_frame(*line_, kError, parser_.header().sequence, scratch_, 2 + append(2, failure.text));
  }

  // Write a text, cut to the room that there is, into the scratch, and return its length.
  std::uint32_t append(std::uint32_t at, const char* text) {
    std::uint32_t length = 0;
    for (; text[length] != '\0' && at + length < sizeof scratch_; ++length) {
      scratch_[at + length] = static_cast<std::uint8_t>(text[length]);
    }
    return length;
  }

  static constexpr char kTooShort[] = "the payload is too short for this command";
  static constexpr char kControlFormats[] = "controls are taken as float32 or as codes of 8 bits";
  static constexpr char kValueFormats[] = "inputs and outputs are float32 here";
  static constexpr char kIllegalControls[] = "controls must be finite and within the control_range of the spec";
  static constexpr char kIllegalInputs[] = "inputs must be finite and within the input_range of the spec";
  static constexpr char kBatchTooLarge[] = "more vectors than the max_batch of the spec";
  static constexpr char kInputCount[] = "these are not as many inputs as were told";

  Board* board_ = nullptr;
  Line* line_ = nullptr;
  Parser<kMaxPayload> parser_;
  Newest newest_;
  std::uint32_t programs_ = 0;
  std::uint32_t vectors_ = 0;
  std::uint32_t watchdog_ = 0;  // milliseconds; 0 is off
  std::uint32_t idle_ = 0;      // milliseconds since the newest request; always less than watchdog_ where that is on
  bool is_programmed_ = false;
  bool was_asked_ = false;  // since the last call of elapsed()
  std::uint8_t scratch_[96]{};
  // Apart from the scratch: it is kept until the next operation, for a host that asks for it once more.
  std::uint8_t answer_[kMaxPayload]{};
};

}  // namespace astralora
