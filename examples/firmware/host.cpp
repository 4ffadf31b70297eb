// Run the reference firmware on a PC, at one end of a pseudo-terminal whose other end is the host's serial port.
//
// It prints the path of that port and serves until SIGTERM or SIGINT. To port the firmware, replace this file: write a
// Board for your converters, a Line for your UART, and a loop that feeds bytes.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "chip.hpp"

namespace {

// Milliseconds after which an incomplete frame is dropped; a busy PC may pause for long within one.
constexpr int kSilence = 200;
// Milliseconds after which the loop counts the time again.
constexpr int kTick = 20;
// Milliseconds that a host has to read an answer; a UART would not wait at all.
constexpr int kPatience = 500;

volatile sig_atomic_t stopping = 0;

void stop(int) { stopping = 1; }

// A simulated chip: y = W x with ideal detectors, and controls in the steps of their DAC.
class Board {
 public:
  void write_control(std::size_t control, std::uint8_t code) {
    constexpr float kStep = (astralora::kHigh - astralora::kLow) / static_cast<float>(astralora::kLevels - 1);
    weights_[control] = astralora::kLow + kStep * static_cast<float>(code);
  }

  void settle() {}

  void write_input(std::size_t input, float value) { inputs_[input] = value; }

  float read_output(std::size_t output) const {
    const float* row = weights_ + output * astralora::kInputs;
    float sum = 0.0F;
    for (std::size_t j = 0; j < astralora::kInputs; ++j) sum += row[j] * inputs_[j];
    return sum;
  }

  void switch_off() {
    for (float& weight : weights_) weight = 0.0F;
    for (float& input : inputs_) input = 0.0F;
  }

 private:
  float weights_[astralora::kControls]{};
  float inputs_[astralora::kInputs]{};
};

// The end of the line on the side of the firmware.
class Line {
 public:
  bool open() {
    master_ = posix_openpt(O_RDWR | O_NOCTTY);
    if (master_ < 0 || grantpt(master_) != 0 || unlockpt(master_) != 0) return false;
    path_ = ptsname(master_);
    // Keep the host's end open here as well: without it the terminal closes whenever no host has it open.
    slave_ = path_ == nullptr ? -1 : ::open(path_, O_RDWR | O_NOCTTY);
    termios settings;
    if (slave_ < 0 || tcgetattr(slave_, &settings) != 0) return false;
    cfmakeraw(&settings);
    return tcsetattr(slave_, TCSANOW, &settings) == 0 && fcntl(master_, F_SETFL, O_NONBLOCK) == 0;
  }

  void close() {
    if (slave_ >= 0) ::close(slave_);
    if (master_ >= 0) ::close(master_);
    slave_ = master_ = -1;
  }

  const char* path() const { return path_; }

  // Return as many bytes as have arrived; 0 if none arrive within that time.
  std::size_t read(std::uint8_t* bytes, std::size_t room, int milliseconds) const {
    if (!wait_for(POLLIN, milliseconds)) return 0;
    const ssize_t count = ::read(master_, bytes, room);
    return count > 0 ? static_cast<std::size_t>(count) : 0;
  }

  void write(const std::uint8_t* bytes, std::size_t count) const {
    // Without a reader the rest is lost, as on a wire; the host will repeat the request.
    while (count > 0 && stopping == 0 && wait_for(POLLOUT, kPatience)) {
      const ssize_t written = ::write(master_, bytes, count);
      if (written <= 0) return;
      bytes += written;
      count -= static_cast<std::size_t>(written);
    }
  }

 private:
  bool wait_for(short event, int milliseconds) const {
    pollfd waiting{master_, event, 0};
    return poll(&waiting, 1, milliseconds) > 0;
  }

  int master_ = -1;
  int slave_ = -1;
  const char* path_ = nullptr;
};

std::uint32_t now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<std::uint32_t>(time.tv_sec) * 1000U + static_cast<std::uint32_t>(time.tv_nsec / 1000000);
}

// Everything is in static memory, as on the microcontroller.
Board board;
Line line;
astralora::Chip<Board, Line> chip;

}  // namespace

int main() {
  struct sigaction action {};
  action.sa_handler = stop;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  if (!line.open()) {
    perror("no pseudo-terminal can be opened");
    return EXIT_FAILURE;
  }
  chip.begin(board, line);
  printf("%s\n", line.path());
  fflush(stdout);
  std::uint8_t bytes[256];
  std::uint32_t last = now();
  std::uint32_t silent = 0;
  while (stopping == 0) {
    const std::size_t count = line.read(bytes, sizeof bytes, kTick);
    // Differences of unsigned numbers are right where the clock overflows, too.
    const std::uint32_t passed = now() - last;
    last += passed;
    chip.elapsed(passed);
    for (std::size_t i = 0; i < count; ++i) chip.receive(bytes[i]);
    silent = count == 0 ? silent + passed : 0;
    if (silent >= kSilence) {
      chip.silence();
      silent = 0;
    }
  }
  chip.make_safe();
  line.close();
  return EXIT_SUCCESS;
}
