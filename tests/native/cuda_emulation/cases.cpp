// Runs csrc/cuda on cudasim and compares with a scalar model: MODE SEED CASES FAULT. Every case
// runs twice with different schedules and must give the same bits.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/forward.cuh"
#include "number_formats.h"

using namespace akd;
using namespace akd::cuda;

namespace {

int failures, cases, runs;

struct Random {
  uint64_t state;
  uint64_t operator()() {
    uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>((*this)() % n); }
  double uniform() { return ((*this)() >> 11) * 0x1p-53; }
  double normal() {
    const double u = uniform() + 1e-300;
    return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * uniform());
  }
};

uint16_t float16_bits(float x) {
  x = to_float16(x);
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7e00;
  x = std::fabs(x);
  if (std::isinf(x)) return sign | 0x7c00;
  int e;
  std::frexp(x, &e);
  if (x == 0 || e < -13) return sign | static_cast<uint16_t>(std::ldexp(x, 24));
  return sign | static_cast<uint16_t>((e + 14) << 10) |
         (static_cast<uint16_t>(std::ldexp(x, 11 - e)) & 1023);
}

void write(unsigned char* p, int type, double x) {
  const float f = static_cast<float>(x);
  const uint16_t half = type == kBFloat16 ? bfloat16_bits(to_bfloat16(f)) : float16_bits(f);
  switch (type) {
    case kFloat: std::memcpy(p, &f, 4); break;
    case kDouble: std::memcpy(p, &x, 8); break;
    default: std::memcpy(p, &half, 2);
  }
}

bool same_bits(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

// Device memory with canaries on both sides, `offset` bytes after a multiple of 64.
struct Buffer {
  static constexpr size_t kGuard = 192;
  unsigned char* memory;
  unsigned char* data;
  size_t size, before;
  std::vector<unsigned char> kept;

  Buffer(size_t size_, size_t offset, int fill = 0xff) : size(size_), before(64 + offset) {
    if (posix_memalign(reinterpret_cast<void**>(&memory), 64, before + size + kGuard)) abort();
    std::memset(memory, 0xC9, before + size + kGuard);
    data = memory + before;
    if (size > 0) std::memset(data, fill, size);
    cudasim::allow(data, size);
  }
  ~Buffer() { free(memory); }
  Buffer(const Buffer&) = delete;
  bool intact() const {
    for (size_t i = 0; i < before + size + kGuard; ++i) {
      if ((i < before || i >= before + size) && memory[i] != 0xC9) return false;
    }
    return true;
  }
  void remember() { kept.assign(data, data + size); }
  bool unchanged() const { return kept.empty() || std::memcmp(kept.data(), data, size) == 0; }
};

// ---- forward -----------------------------------------------------------------------------------

enum Input { kInts, kNormal, kSpecial, kConstant, kNumInputs };
enum Place { kContiguous, kStrided, kTwoStrides };

struct Logits {
  int type = kFloat;
  Place place = kContiguous;
  size_t offset = 0;  // bytes
  Layout layout;
  int64_t span = 0;  // elements from the first to the last
  void lay(int64_t rows, int64_t classes, int64_t gap) {
    layout = {1, classes, 0, true};
    span = rows * classes;
    if (place == kContiguous || span == 0) return;
    const int64_t inner = place == kStrided ? rows : (rows + 2) / 3;
    layout = {inner, classes + gap, place == kStrided ? 0 : inner * (classes + gap) + 2 * gap,
              false};
    span = at(rows - 1, classes) + classes;
  }
  int64_t at(int64_t row, int64_t classes) const {
    if (layout.contiguous) return row * classes;
    return row / layout.inner * layout.outer_stride + row % layout.inner * layout.inner_stride;
  }
};

struct Case {
  Logits student, teacher;
  int64_t rows = 1, classes = 1;
  int mask = 0;  // 0 none, 1 random, 2 drops all, 3 keeps all
  int weight_type = -1, phi_type = -1, divisor_type = -1;  // -1: none, or a number for phi
  bool has_divisor = false, gradient = true, nan_where_dropped = false;
  size_t gradient_offset = 0, mask_offset = 0;
  int reduction = 1, input = kNormal;
  double phi = 0.5, divisor = 3;
  uint64_t seed = 1;
  int64_t numel() const { return rows * classes; }
  std::string text() const {
    char b[400];
    std::snprintf(
        b, sizeof b,
        "%s(%d+%zu) x %s(%d+%zu) %lld x %lld, gradient %d+%zu, mask %d, weight %d, phi %g/%d, "
        "divisor %d/%d, reduction %d, input %d, seed %llu",
        kNames[student.type], student.place, student.offset, kNames[teacher.type], teacher.place,
        teacher.offset, (long long)rows, (long long)classes, gradient, gradient_offset, mask,
        weight_type, phi, phi_type, has_divisor, divisor_type, reduction, input,
        (unsigned long long)seed);
    return b;
  }
};

void fail_case(const Case& c, const std::string& what) {
  if (++failures <= 10) std::printf("FAIL %s: %s\n", what.c_str(), c.text().c_str());
}

double value_of(Random& random, int input, bool student) {
  switch (input) {
    case kInts: return static_cast<double>(random.below(9)) - 4;
    case kNormal: return 3 * random.normal();
    case kConstant: return student ? 0.7 : 0.1;
    default: break;
  }
  const double specials[] = {NAN, INFINITY, -INFINITY, 0.0, -0.0};
  const int exponents[] = {-140, -16, 15, 126};
  const int64_t k = random.below(14);
  if (k < 5) return specials[k];
  return std::ldexp(random.normal(), k < 9 ? exponents[k - 5] : 0);
}

template <class A>
double square(const Case& c, double s, double t, double factor, double* gradient) {
  const A product = static_cast<A>(c.phi) * static_cast<A>(t);
  const A d = static_cast<A>(s) - product;
  const A g = d * static_cast<A>(factor);
  *gradient = stored_gradient(static_cast<double>(g), c.student.type);
  const A q = d * d;
  return static_cast<double>(q);
}

bool run_case(Case c) {
  ++cases;
  const int before = failures;
  cudasim::allow_nothing_more();
  Random random{c.seed};
  const int64_t n = c.numel();
  const int s_type = c.student.type, t_type = c.teacher.type;
  const bool wide = s_type == kDouble || t_type == kDouble;
  Buffer student(c.student.span * kSizes[s_type], c.student.offset);
  Buffer teacher(c.teacher.span * kSizes[t_type], c.teacher.offset);
  Buffer mask(c.mask ? c.rows : 0, c.mask_offset), loss(wide ? 8 : 4, 8), phi(8, 0), divisor(8, 0);
  Buffer weight(c.weight_type < 0 ? 0 : c.rows * kSizes[c.weight_type], 0);
  if (c.phi_type >= 0) write(phi.data, c.phi_type, c.phi = stored(c.phi, c.phi_type));
  if (c.divisor_type >= 0) write(divisor.data, c.divisor_type, c.divisor);

  // The weights are eighths, so that their sum is exact in any order.
  std::vector<double> own(c.rows, 1.0);
  double counted = 0;
  for (int64_t r = 0; r < c.rows; ++r) {
    if (c.weight_type >= 0) {
      write(weight.data + r * kSizes[c.weight_type], c.weight_type, own[r] = random.below(9) / 8.0);
    }
    if (c.mask) {
      const bool keep = c.mask == 3 || (c.mask == 1 && random.below(2));
      mask.data[r] = keep ? 1 + random.below(255) : 0;
      if (!keep) own[r] = 0;
    }
    counted += own[r];
  }
  for (int64_t r = 0; r < c.rows; ++r) {
    const bool bad = own[r] == 0 && c.nan_where_dropped;
    for (int64_t k = 0; k < c.classes; ++k) {
      write(student.data + (c.student.at(r, c.classes) + k) * kSizes[s_type], s_type,
            bad ? NAN : value_of(random, c.input, true));
      write(teacher.data + (c.teacher.at(r, c.classes) + k) * kSizes[t_type], t_type,
            bad ? INFINITY : value_of(random, c.input, false));
    }
  }
  for (Buffer* b : {&student, &teacher, &mask, &weight, &phi, &divisor}) b->remember();

  const double count = c.has_divisor      ? c.divisor
                       : c.reduction == 0 ? 1.0
                       : c.reduction == 1 ? counted * static_cast<double>(c.classes)
                                          : counted;
  const double scale = s_type == kHalf ? 1.0 : count != 0 ? 2 / count : 0.0;
  std::vector<double> expected(n);
  long double exact = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t r = i / c.classes, k = i % c.classes;
    if (own[r] == 0) continue;
    const double s = read(student.data + (c.student.at(r, c.classes) + k) * kSizes[s_type], s_type);
    const double t = read(teacher.data + (c.teacher.at(r, c.classes) + k) * kSizes[t_type], t_type);
    exact += own[r] *
             static_cast<long double>(wide ? square<double>(c, s, t, own[r] * scale, &expected[i])
                                           : square<float>(c, s, t, own[r] * scale, &expected[i]));
  }
  exact /= count;

  std::vector<unsigned char> first_loss, first_gradient;
  for (int run = 0; run < 2 && failures == before; ++run) {
    ++runs;
    Buffer gradient(c.gradient ? n * kSizes[s_type] : 0, c.gradient_offset, 0x5B);
    std::memset(loss.data, 0xB7, loss.size);
    const unsigned preempt = random.below(3) == 0 ? 8 + random.below(64) : 0;
    cudasim::schedule = {static_cast<cudasim::Order>(random.below(cudasim::kNumOrders)),
                         run == 0 ? 0 : random() | 1, preempt,
                         static_cast<unsigned>(1 + random.below(4))};
    Forward problem = {};
    problem.student = student.data;
    problem.teacher = teacher.data;
    problem.gradient = c.gradient ? gradient.data : nullptr;
    problem.mask = c.mask ? mask.data : nullptr;
    problem.weight = c.weight_type >= 0 ? weight.data : nullptr;
    problem.loss = loss.data;
    problem.student_type = static_cast<Type>(s_type);
    problem.teacher_type = static_cast<Type>(t_type);
    problem.weight_type = static_cast<Type>(std::max(c.weight_type, 0));
    problem.rows = c.rows;
    problem.classes = c.classes;
    problem.student_layout = c.student.layout;
    problem.teacher_layout = c.teacher.layout;
    const auto scalar = [](double value, const Buffer& b, int type) {
      return type < 0 ? Scalar{value, nullptr, kDouble}
                      : Scalar{-77, b.data, static_cast<Type>(type)};
    };
    problem.phi = scalar(c.phi, phi, c.phi_type);
    problem.has_divisor = c.has_divisor;
    problem.divisor = scalar(c.divisor, divisor, c.divisor_type);
    problem.reduction = static_cast<Reduction>(c.reduction);
    const Plan plan = plan_forward(problem);
    Buffer workspace(plan.workspace * 8, 0);
    const cudaError_t error =
        launch_forward(problem, plan, reinterpret_cast<double*>(workspace.data), nullptr);
    if (error != cudaSuccess) {
      fail_case(c, cudasim::failure ? cudasim::failure : "an error without a failure");
      break;
    }
    for (const Buffer* b :
         {&student, &teacher, &mask, &weight, &phi, &divisor, &loss, &gradient, &workspace}) {
      if (!b->intact()) fail_case(c, "wrote out of bounds");
      if (!b->unchanged()) fail_case(c, "an input changed");
    }
    for (int64_t i = 0; c.gradient && i < n; ++i) {
      const double got = read(gradient.data + i * kSizes[s_type], s_type);
      if (!same_bits(got, expected[i])) {
        char b[120];
        std::snprintf(b, sizeof b, "gradient %lld: %a, expected %a", (long long)i, got,
                      expected[i]);
        fail_case(c, b);
        break;
      }
    }
    // The budget of csrc/cuda/forward.cuh: 4 roundings to float32, and the loss's own.
    const double got = read(loss.data, wide ? kDouble : kFloat), want = static_cast<double>(exact);
    const double budget = std::fabs(want) * (wide ? 0x1p-45 : 5 * 0x1p-24) + (wide ? 0 : 0x1p-149);
    const bool right = std::isfinite(want) && (wide || std::fabs(want) < 3e38)
                           ? std::fabs(got - want) <= budget
                           : !std::isfinite(got) && (c.input == kSpecial || same_bits(got, want));
    if (!right) {
      char b[120];
      std::snprintf(b, sizeof b, "loss %a, expected %a", got, want);
      fail_case(c, b);
    }
    const std::vector<unsigned char> l(loss.data, loss.data + loss.size),
        g(gradient.data, gradient.data + gradient.size);
    if (run == 0) {
      first_loss = l;
      first_gradient = g;
    } else if (l != first_loss || g != first_gradient) {
      fail_case(c, "two schedules, two results");
    }
  }
  return failures == before;
}

// Sizes around every border: a pack, a warp, a trip, one block, many.
Case make_case(uint64_t index, uint64_t seed, bool small) {
  Case c;
  Random random{index * 0x9e3779b97f4a7c15 ^ seed * 0xd1342543de82ef95};
  c.student.type = index % 4;
  c.teacher.type = index / 4 % 4;
  c.gradient = index / 16 % 4 != 3;
  c.mask = random.below(2) ? 0 : 1 + random.below(3);
  if (random.below(3) == 0) c.weight_type = random.below(4);
  if (random.below(3) == 0)
    c.has_divisor = true, c.divisor_type = static_cast<int>(random.below(5)) - 1;
  c.divisor = 1 + random.below(50);
  c.reduction = random.below(3);
  c.input = random.below(10) < 4 ? kNormal : random.below(kNumInputs);
  if (random.below(3) == 0) c.student.place = random.below(2) ? kStrided : kTwoStrides;
  if (random.below(3) == 0) c.teacher.place = random.below(2) ? kStrided : kTwoStrides;
  const size_t widest = std::max(kSizes[c.student.type], kSizes[c.teacher.type]);
  int64_t count = 16 / widest;
  if (random.below(4) == 0) {  // at least one of them where 16 bytes cannot be moved
    c.student.offset = random.below(8 * count) * kSizes[c.student.type];
    c.teacher.offset = random.below(8 * count) * kSizes[c.teacher.type];
    c.gradient_offset = random.below(8) * kSizes[c.student.type];
    count = 1;
  }
  const int64_t trip = 512 * count * (count == 1 ? 4 : 2);
  const int64_t sizes[] = {0,
                           1,
                           2,
                           count - 1,
                           count,
                           count + 1,
                           33 * count + 1,
                           512 * count - 1,
                           512 * count + 1,
                           trip - 1,
                           trip,
                           trip + 1,
                           trip + 512 * count,
                           2 * trip + 7,
                           4 * trip - 1,
                           4 * trip,
                           4 * trip + 1,
                           5 * trip + count,
                           6 * trip + 513 * count + 1,
                           9 * trip - 1};
  const int64_t size = sizes[random.below(small ? 17 : 20)];
  const int64_t many[] = {1, 2, 3, 10, 100, 1000, 7, 13, 31, 127, 1009, 5, 8, 16, 64};
  c.classes = many[random.below(15)];
  if (random.below(4) == 0) c.classes = std::max<int64_t>(size, 1);  // one row
  c.rows = (size + c.classes - 1) / c.classes;
  if (size == 0 && random.below(2)) c.classes = 0, c.rows = random.below(40);
  const int64_t gaps[] = {0, count, 8, 1, 5};
  c.student.lay(c.rows, c.classes, gaps[random.below(5)]);
  c.teacher.lay(c.rows, c.classes, gaps[random.below(5)]);
  const double phis[] = {0, 0.25, 0.5, 1};
  c.phi = random.below(2) ? phis[random.below(4)] : random.uniform();
  c.phi_type = static_cast<int>(random.below(5)) - 1;
  c.mask_offset = random.below(2) ? random.below(16) : 0;
  c.nan_where_dropped = random.below(2);
  c.seed = random();
  return c;
}

// Many rows: a kernel of its own adds up their weights, beyond 512 x 4096 rows with full blocks.
Case count_case(uint64_t index, uint64_t seed) {
  Random random{index ^ seed * 0xd1342543de82ef95};
  Case c = make_case(index, seed, true);
  const int64_t rows[] = {4095, 4096, 4097, 8192, 8193, 12289, 4096 + random.below(20000)};
  c.rows = rows[index % 7];
  c.classes = 1 + index % 2;
  c.has_divisor = false;
  c.mask = 1 + random.below(3);
  c.gradient = index % 8 == 0;
  c.reduction = 1 + random.below(2);
  c.student.lay(c.rows, c.classes, 1);
  c.teacher.lay(c.rows, c.classes, 1);
  return c;
}

// More tiles than kBlocks: several for each block, more blocks' sums than a block has threads.
Case wide_case(uint64_t index) {
  const struct {
    int student, teacher, mask, weight;
    int64_t rows, classes;
    size_t offset;
  } list[] = {
      {kDouble, kDouble, 0, -1, 33, 131071, 0},     {kBFloat16, kBFloat16, 1, -1, 4300011, 1, 2},
      {kFloat, kBFloat16, 1, kHalf, 9001, 1009, 0}, {kBFloat16, kBFloat16, 0, -1, 17, 1000003, 0},
      {kHalf, kHalf, 3, kFloat, 65537, 257, 0},     {kFloat, kFloat, 0, -1, 2100, 4096, 0}};
  const auto& w = list[index % 6];
  Case c;
  c.student.type = w.student;
  c.teacher.type = w.teacher;
  c.student.offset = w.offset;
  c.mask = w.mask;
  c.weight_type = w.weight;
  c.rows = w.rows;
  c.classes = w.classes;
  c.input = index % 2 ? kNormal : kConstant;
  c.seed = index + 99;
  c.student.lay(c.rows, c.classes, 0);
  c.teacher.lay(c.rows, c.classes, 0);
  return c;
}

// ---- scale -------------------------------------------------------------------------------------

void scale_case(uint64_t index, uint64_t seed) {
  ++cases;
  ++runs;
  Random random{seed * 1000003 + index};
  cudasim::allow_nothing_more();
  const int type = index % 4;
  const bool odd = random.below(3) == 0;
  const size_t offset =
      odd ? (1 + random.below(16 / kSizes[type] - 1)) * kSizes[type] : 16 * random.below(3);
  const int64_t count = odd ? 1 : 16 / kSizes[type], trip = 512 * count;
  const int64_t sizes[] = {
      0, 1, count - 1, count + 1, trip - 1, trip, trip + 1, 7 * trip + 3, random.below(20 * trip)};
  const int64_t n = sizes[index / 4 % 9];
  Buffer x(n * kSizes[type], offset), factor(8, 0);
  const int input = random.below(3), factor_type = static_cast<int>(random.below(5)) - 1;
  for (int64_t i = 0; i < n; ++i)
    write(x.data + i * kSizes[type], type, value_of(random, input, true));
  x.remember();
  double value = random.below(4) == 0 ? 1.0 : random.below(6) == 0 ? 0.0 : random.normal();
  if (factor_type >= 0) write(factor.data, factor_type, value = stored(value, factor_type));
  const double constant = random.below(2) ? 1.0 : random.below(2) ? 2.0 / 13e6 : 65536.0;
  cudasim::schedule = {static_cast<cudasim::Order>(random.below(3)), random() | 1, 0, 2};
  cudasim::launches = 0;
  const Scalar scalar = factor_type < 0 ? Scalar{value, nullptr, kDouble}
                                        : Scalar{-77, factor.data, static_cast<Type>(factor_type)};
  const cudaError_t error =
      launch_scale(x.data, static_cast<Type>(type), n, scalar, constant, nullptr);
  const double whole = value * constant;
  bool right = error == cudaSuccess && x.intact() && cudasim::launches == (n > 0);
  for (int64_t i = 0; i < n && right; ++i) {
    const double a = read(x.kept.data() + i * kSizes[type], type);
    const double product =
        type == kDouble ? a * whole : static_cast<float>(a) * static_cast<float>(whole);
    right =
        same_bits(read(x.data + i * kSizes[type], type), whole == 1 ? a : stored(product, type));
  }
  if (!right && ++failures <= 10) {
    std::printf("FAIL scale %s n %lld offset %zu factor %g x %g: %s\n", kNames[type], (long long)n,
                offset, value, constant, cudasim::failure ? cudasim::failure : "wrong");
  }
}

// ---- the host's code ---------------------------------------------------------------------------

void expect(bool right, const char* what) {
  ++cases;
  if (!right && ++failures) std::printf("FAIL host: %s\n", what);
}

void host_cases() {
  cudasim::allow_nothing_more();
  cudasim::schedule = {};
  const int64_t rows = 10000, n = rows * 10;
  Buffer s(n * 4, 0, 0), t(n * 4, 0, 0), g(n * 4, 0), loss(4, 0), mask(rows, 0, 1), work(4096, 0);
  double* const workspace = reinterpret_cast<double*>(work.data);
  Forward p = {};
  p.student = s.data;
  p.teacher = t.data;
  p.gradient = g.data;
  p.mask = mask.data;
  p.loss = loss.data;
  p.rows = rows;
  p.classes = 10;
  p.student_layout = p.teacher_layout = {1, 10, 0, true};
  p.phi = {0.5, nullptr, kDouble};
  p.reduction = Reduction::kMean;
  const Plan plan = plan_forward(p);
  expect(plan.count_blocks == 3 && plan.blocks == 25 && plan.vector, "the plan has three launches");
  for (int launch = 0; launch < 3; ++launch) {
    cudasim::launches = 0;
    cudasim::launches_until_error = launch;
    expect(launch_forward(p, plan, workspace, nullptr) == cudaErrorLaunchOutOfResources,
           "a launch that fails is reported");
    expect(cudasim::launches == launch + 1, "nothing is launched after it");
    expect(cudaGetLastError() == cudaSuccess, "its error is not left for the next call");
    cudasim::launches_until_error = -1;
  }
  cudasim::launches_until_error = 0;
  const Scalar two = {2, nullptr, kDouble};
  expect(launch_scale(g.data, kFloat, n, two, 1, nullptr) == cudaErrorLaunchOutOfResources,
         "scale");
  cudasim::launches_until_error = -1;
  expect(cudaGetLastError() == cudaSuccess, "scale leaves no error");
  cudasim::launch(dim3(0), dim3(512), [] {});  // somebody else's error
  expect(launch_forward(p, plan, workspace, nullptr) == cudaSuccess,
         "an old error is not reported");
  expect(launch_scale(g.data, kFloat, n, two, 1, nullptr) == cudaSuccess, "nor by scale");
  expect(cudaGetLastError() != cudaSuccess, "nor taken away");
  float value;
  std::memcpy(&value, loss.data, 4);
  expect(value == 0, "and the loss is right");
  Random random{5};
  for (int k = 0; k < 200000; ++k) {
    const int64_t d = 1 + static_cast<int64_t>(random() >> (3 + random.below(61)));
    int64_t q = static_cast<int64_t>(random() >> 2) / d * d - random.below(2);
    if (random.below(3) == 0) q = static_cast<int64_t>(random() >> (2 + random.below(60)));
    if (q >= 0 && divide_by(d).quotient(q) != q / d)
      return expect(false, "division by multiplication");
    const int64_t small = q & 0x7fffffff, by = 1 + d % kMostClasses;
    if (divide_small_by(by).quotient(small) != small / by)
      return expect(false, "division of 32 bits by multiplication");
  }
}

// The rows of a block's elements, of up to 2^40 classes, near a row's end and anywhere.
void block_rows() {
  Random random{6};
  for (int k = 0; k < 200000; ++k) {
    Work work = {};
    const int64_t classes = work.problem.classes = 1 + random() % (int64_t{1} << random.below(41));
    work.by_classes = divide_by(classes);
    work.by_classes_in_block = divide_small_by(std::min(classes, kMostClasses));
    const int64_t some = classes * random.below(1000);
    const int64_t begin = random.below(2) ? some + random.below(classes)
                                          : std::max<int64_t>(some - random.below(1 << 17), 0);
    const BlockRows rows(work, begin);
    const int64_t i = random.below(1 << 17), count = 1 + random.below(8), at = begin + i;
    const unsigned row = rows.row(i);
    if (rows.first != begin / classes || rows.first + row != at / classes ||
        rows.holds(row, i, count) != (at % classes + count <= classes)) {
      return expect(false, "the row of an element of a block");
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 0) : 1;
  const uint64_t many = argc > 3 ? std::strtoull(argv[3], nullptr, 0) : 100;
  cudasim::planted = argc > 4 ? std::atoi(argv[4]) : 0;
  for (uint64_t i = 0; i < many && failures < (cudasim::planted ? 1 : 10); ++i) {
    if (mode == "forward") run_case(make_case(i, seed, false));
    if (mode == "float32") run_case(make_case(4 * i, seed, true));
    if (mode == "count") run_case(count_case(i, seed));
    if (mode == "wide") run_case(wide_case(i));
    if (mode == "wide32") run_case(wide_case(5));
    if (mode == "count32") run_case(count_case(4 * i, seed));
    if (mode == "scale") scale_case(i, seed);
    if (mode == "host" && i == 0) host_cases(), block_rows();
  }
  std::printf("%s: %d cases, %d runs, %d failures\n", mode.c_str(), cases, runs, failures);
  return failures != 0 || cases == 0;
}
