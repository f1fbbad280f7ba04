// The quantisation formulas, scalar. The vector levels restate them instruction for instruction and
// are held to these, bit for bit, by the tests. Internal linkage: see api.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/host_device.h"
#include "common/math.h"

namespace tfq {

// bfloat16 with round to nearest even; NaN stays NaN (quiet); subnormals are kept.
static TFQ_HOST_DEVICE inline uint16_t float_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static TFQ_HOST_DEVICE inline float bf16_to_float(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// q = clamp(i32(rne(f32(x * r))) + z, 0, 255); NaN -> z. Clamping the float to [-z, 255 - z] first
// gives the same integer, because the bounds are integers, and keeps the conversion in range.
static TFQ_HOST_DEVICE inline uint8_t quantize_value(float x, float r, float z) {
  float v = x * r;
  if (v != v) v = 0.0f;
  const float low = -z;
  const float high = 255.0f - z;
  v = v < low ? low : v;
  v = v > high ? high : v;
  return static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(v)) + static_cast<int32_t>(z));
}

// A scale that stands for 0 (1 then) or would be subnormal, corrected.
static TFQ_HOST_DEVICE inline float normal_scale(float s) {
  if (s == 0.0f) return 1.0f;
  if (s < kSmallestNormal) return kSmallestNormal;
  return s;
}

// int8 is quantised as uint8 with this zero-point, whose high bit is then flipped.
constexpr float kSignedZero = 128.0f;

// Scale of int8 in [-127, 127] for values up to `magnitude`.
static TFQ_HOST_DEVICE inline float symmetric_scale(float magnitude) {
  return normal_scale(magnitude / 127.0f);
}

// Parameters that cover [low, high] and 0: s = (high - low) / 255 (1 for an all-zero group),
// z = clamp(rne(-low * (1/s)), 0, 255). Writes (s, 1/s, z).
static TFQ_HOST_DEVICE inline void qparams_from_range(float low, float high, float* qparams) {
  low = low < 0.0f ? low : 0.0f;
  high = high > 0.0f ? high : 0.0f;
  const float s = normal_scale(high / 255.0f - low / 255.0f);
  const float r = 1.0f / s;
  float z = std::nearbyint(-low * r);
  if (!(z > 0.0f)) z = 0.0f;
  if (z > 255.0f) z = 255.0f;
  qparams[0] = s;
  qparams[1] = r;
  qparams[2] = z;
}

}  // namespace tfq
