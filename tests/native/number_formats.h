// The four types of logits, written again from their definitions, not taken from the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "annealed_mse.h"

namespace {

constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};
constexpr size_t kSizes[] = {4, 8, 2, 2};

// A number with `significand` bits and smallest exponent `min_exponent`, nearest, ties to even.
float round_to(float x, int significand, int min_exponent, float largest) {
  if (!std::isfinite(x) || x == 0) return x;
  int exponent;
  std::frexp(x, &exponent);  // |x| in [2^(exponent-1), 2^exponent)
  const int step = std::max(exponent - significand, min_exponent);
  const double rounded =
      std::ldexp(std::nearbyint(std::ldexp(static_cast<double>(x), -step)), step);
  if (std::fabs(rounded) > largest) return std::copysign(INFINITY, x);
  return static_cast<float>(rounded);
}

float to_bfloat16(float x) { return round_to(x, 8, -133, 3.3895313892515355e38f); }
float to_float16(float x) { return round_to(x, 11, -24, 65504.0f); }

uint16_t bfloat16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(bits >> 16);
}

float bfloat16_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

float float16_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  float x;
  if (exponent == 31) {
    x = fraction ? NAN : INFINITY;
  } else if (exponent == 0) {
    x = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    x = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  }
  return bits & 0x8000 ? -x : x;
}

double read(const unsigned char* p, int type) {
  float f;
  double d;
  uint16_t h;
  switch (type) {
    case akd::kFloat: std::memcpy(&f, p, 4); return f;
    case akd::kDouble: std::memcpy(&d, p, 8); return d;
    case akd::kBFloat16: std::memcpy(&h, p, 2); return bfloat16_value(h);
    default: std::memcpy(&h, p, 2); return float16_value(h);
  }
}

// What the type keeps of x, which has been computed in double when `wide`, else in float.
double stored(double x, int type) {
  switch (type) {
    case akd::kFloat: return static_cast<float>(x);
    case akd::kDouble: return x;
    case akd::kBFloat16: return to_bfloat16(static_cast<float>(x));
    default: return to_float16(static_cast<float>(x));
  }
}

// What a gradient of the loss is stored as: a finite one stays finite in float16
// (csrc/annealed_mse.h, saturate_half).
double stored_gradient(double x, int type) {
  if (type == akd::kHalf && std::isfinite(x)) x = std::fmin(std::fmax(x, -65504.0), 65504.0);
  return stored(x, type);
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

}  // namespace
