// Numbers of 16 bits, IEEE 754 binary16, as weights are stored.
#pragma once

#include <cstdint>
#include <cstring>

namespace onnxprune {

inline float float_of_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
  if (exponent == 0) {  // zero, or a fraction of 2^-14
    const float size = float(fraction) * 0x1p-24f;
    return sign ? -size : size;
  }
  // Infinity and NaN keep an exponent of ones.
  const uint32_t bits = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | fraction << 13;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace onnxprune
