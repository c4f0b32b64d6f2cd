// Runs the CPU kernels of one instruction set (AKD_EXT_CPU chooses it) without torch: every pair of
// types, odd lengths and offsets, canaries around every buffer, compared element by element with a
// scalar loop. Built with sanitizers by test_native.py; the argument `threads` runs them
// concurrently.
#include "cpu/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "number_formats.h"

using akd::cpu::Kernels;

namespace {

// ---- buffers with canaries ---------------------------------------------------------------------

// Exactly as long as needed on the heap, so that AddressSanitizer sees the first byte too many; and
// surrounded by canaries inside one allocation, for a build without it.
struct Buffer {
  static constexpr size_t kGuard = 64;
  static constexpr unsigned char kCanary = 0xA5;
  std::vector<unsigned char> bytes;
  size_t begin, size;

  Buffer(size_t size_, size_t offset, bool guarded)
      : begin(guarded ? kGuard + offset : offset), size(size_) {
    bytes.assign(begin + size + (guarded ? kGuard : 0), kCanary);
    bytes.shrink_to_fit();
  }
  unsigned char* data() { return bytes.data() + begin; }
  bool intact() const {
    for (size_t i = 0; i < bytes.size(); ++i) {
      if ((i < begin || i >= begin + size) && bytes[i] != kCanary) return false;
    }
    return true;
  }
};

void fill(Buffer& buffer, int type, int64_t n, std::mt19937& random, bool special) {
  std::normal_distribution<float> normal(0, 3);
  for (int64_t i = 0; i < n; ++i) {
    unsigned char* p = buffer.data() + i * kSizes[type];
    const float x = normal(random);
    if (type == akd::kFloat) {
      std::memcpy(p, &x, 4);
    } else if (type == akd::kDouble) {
      const double d = x * 1.000000001;
      std::memcpy(p, &d, 8);
    } else {
      // Any 16 bits are a number of the type: NaN, infinities and denormals included.
      uint16_t bits = static_cast<uint16_t>(random());
      if (!special)
        bits = type == akd::kBFloat16 ? bfloat16_bits(x)
                                      : static_cast<uint16_t>((bits & 0x83ff) | 0x3c00);
      std::memcpy(p, &bits, 2);
    }
  }
}

int failures = 0;

void fail(const char* what, const Kernels& table, int s, int t, int64_t n, size_t offset) {
  std::fprintf(stderr, "FAIL %s: %s, student %s, teacher %s, n %lld, offset %zu\n", what,
               table.name, kNames[s], kNames[t], static_cast<long long>(n), offset);
  if (++failures > 20) std::exit(1);
}

void check_run(const Kernels& table, int s, int t, int64_t n, size_t offset, bool special,
               bool guarded) {
  std::mt19937 random(static_cast<unsigned>(n * 31 + offset));
  Buffer student(n * kSizes[s], offset * kSizes[s], guarded),
      teacher(n * kSizes[t], offset * kSizes[t], guarded);
  Buffer gradient(n * kSizes[s], ((offset * 7) % 5) * kSizes[s], guarded);
  fill(student, s, n, random, special);
  fill(teacher, t, n, random, special);
  const double phi = 0.3, scale = 2.0 / 7;
  const bool wide = s == akd::kDouble || t == akd::kDouble;
  const double sum =
      table.run[s][t](student.data(), teacher.data(), gradient.data(), n, phi, scale);
  const double alone = table.run[s][t](student.data(), teacher.data(), nullptr, n, phi, scale);
  if (!same(sum, alone)) fail("sum with gradient is not sum without", table, s, t, n, offset);
  double expected = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double a = read(student.data() + i * kSizes[s], s),
                 b = read(teacher.data() + i * kSizes[t], t);
    double d, g;
    if (wide) {
      d = a - phi * b;
      g = d * scale;
      expected += d * d;
    } else {
      const float df = static_cast<float>(a) - static_cast<float>(phi) * static_cast<float>(b);
      d = df;
      g = df * static_cast<float>(scale);
      expected += df * df;
    }
    if (!same(read(gradient.data() + i * kSizes[s], s), stored_gradient(g, s)))
      fail("gradient", table, s, t, n, offset);
  }
  // At most 32 squares are added in float before they go to double: 32 roundings, of which most
  // cancel.
  const double tolerance = (wide ? 1e-13 : 8 * 6e-8) * expected;
  const bool close = std::isfinite(expected) ? std::fabs(sum - expected) <= tolerance
                                             : same(sum, expected) || !std::isfinite(sum);
  if (!close) fail("sum", table, s, t, n, offset);
  if (!student.intact() || !teacher.intact() || !gradient.intact())
    fail("canary", table, s, t, n, offset);
}

void check_scale(const Kernels& table, int type, int64_t n, size_t offset, bool guarded) {
  std::mt19937 random(static_cast<unsigned>(n));
  Buffer x(n * kSizes[type], offset * kSizes[type], guarded);
  fill(x, type, n, random, true);
  const std::vector<unsigned char> before(x.data(), x.data() + n * kSizes[type]);
  const double factor = 0.7;
  table.scale[type](x.data(), n, factor);
  for (int64_t i = 0; i < n; ++i) {
    const double a = read(before.data() + i * kSizes[type], type);
    const double g =
        type == akd::kDouble ? a * factor : static_cast<float>(a) * static_cast<float>(factor);
    if (!same(read(x.data() + i * kSizes[type], type), stored(g, type)))
      fail("scale", table, type, type, n, offset);
  }
  if (!x.intact()) fail("canary of scale", table, type, type, n, offset);
}

// Every 16-bit number, through load and store: the value, bit by bit, of every half and bfloat16.
void check_every_half(const Kernels& table) {
  for (int type : {static_cast<int>(akd::kBFloat16), static_cast<int>(akd::kHalf)}) {
    std::vector<uint16_t> all(1 << 16), result(1 << 16), zero(1 << 16);
    for (int i = 0; i < 1 << 16; ++i) all[i] = static_cast<uint16_t>(i);
    table.run[type][type](all.data(), zero.data(), result.data(), 1 << 16, 0.0, 1.0);
    for (int i = 0; i < 1 << 16; ++i) {
      const unsigned char* a = reinterpret_cast<const unsigned char*>(&all[i]);
      const unsigned char* b = reinterpret_cast<const unsigned char*>(&result[i]);
      if (!same(read(a, type), read(b, type))) fail("round trip", table, type, type, i, 0);
    }
  }
}

// Every rounding case of float -> half types: a float32 student scaled is stored as float32, so the
// rounding is reached by a half student and a float32 teacher: 0 - 1 * t.
void check_rounding(const Kernels& table) {
  std::mt19937 random(5);
  const int64_t n = 1 << 16;
  std::vector<float> t(n);
  for (auto& x : t) {
    // Exponents around the borders of float16, then anything at all.
    uint32_t bits = random();
    if (random() % 2) bits = (bits & 0x807fffff) | ((100 + random() % 45) << 23);
    if (random() % 2) bits &= 0xfffff000 | (random() % 2 ? 0x1000 : 0);  // ties
    std::memcpy(&x, &bits, 4);
  }
  for (int type : {static_cast<int>(akd::kBFloat16), static_cast<int>(akd::kHalf)}) {
    std::vector<uint16_t> zero(n), result(n);
    table.run[type][akd::kFloat](zero.data(), t.data(), result.data(), n, 1.0, 1.0);
    for (int64_t i = 0; i < n; ++i) {
      const double got = read(reinterpret_cast<const unsigned char*>(&result[i]), type);
      if (!same(got, stored_gradient(0.0f - t[i], type)))
        fail("rounding", table, type, akd::kFloat, i, 0);
    }
  }
}

void check_all(const Kernels& table, bool thorough) {
  // Around every border: one vector (8, 16), two (16, 32), the hand-over to double (1024, 512).
  std::vector<int64_t> lengths = {0,  1,  2,  3,  7,   8,   9,   15,   16,   17,   31,   32,  33,
                                  47, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025, 1056, 2053};
  if (thorough) {
    for (int64_t n = 0; n < 70; ++n) lengths.push_back(n);
  }
  for (int s = 0; s < akd::kNumTypes; ++s) {
    for (int t = 0; t < akd::kNumTypes; ++t) {
      for (int64_t n : lengths) {
        for (size_t offset : {0, 1, 3}) {
          check_run(table, s, t, n, offset, n % 2 == 1, false);
          check_run(table, s, t, n, offset, n % 2 == 0, true);
        }
      }
    }
    for (int64_t n : lengths) {
      for (size_t offset : {0, 1, 3}) {
        check_scale(table, s, n, offset, false);
        check_scale(table, s, n, offset, true);
      }
    }
  }
}

// Neighbouring blocks of one problem on different threads, cut at odd places: no thread may touch
// an element of another one, not even to write back what was there.
void check_threads() {
  const int64_t n = 8 * 1009;
  for (int s = 0; s < akd::kNumTypes; ++s) {
    std::vector<unsigned char> student(n * kSizes[s]), gradient(n * kSizes[s]),
        alone(n * kSizes[s]);
    std::vector<std::thread> threads;
    std::vector<double> sums(8);
    for (int part = 0; part < 8; ++part) {
      threads.emplace_back([&, part, s] {
        const size_t begin = part * 1009 * kSizes[s];
        // The table is asked for by every thread: its choice at the first call is raced as well.
        const Kernels& table = akd::cpu::kernels();
        sums[part] = table.run[s][s](student.data() + begin, student.data() + begin,
                                     gradient.data() + begin, 1009, 0.5, 2.0);
        table.scale[s](gradient.data() + begin, 1009, 3.0);
      });
    }
    for (auto& thread : threads) thread.join();
    const Kernels& table = akd::cpu::kernels();
    table.run[s][s](student.data(), student.data(), alone.data(), n, 0.5, 2.0);
    table.scale[s](alone.data(), n, 3.0);
    if (alone != gradient) fail("threads", table, s, s, n, 0);
  }
}

}  // namespace

// probe: 77 if this machine lacks the instruction set. threads: the choice is made inside the
// threads.
int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "threads") {
    check_threads();
    std::printf("threads %s: %d failures\n", akd::cpu::kernels().name, failures);
    return failures != 0;
  }
  const Kernels* table = nullptr;
  try {
    table = &akd::cpu::kernels();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 77;
  }
  if (mode == "probe") return 0;
  check_all(*table, true);
  check_every_half(*table);
  check_rounding(*table);
  std::printf("%s: %d failures\n", table->name, failures);
  return failures != 0;
}
