#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace onnxprune {

// How many tiles an image (or a matrix of tokens) has, and how large each is.
inline int64_t tile_count(int64_t pixels) {
  return pixels <= kMaxTile ? 1 : (pixels - (kMaxTile - kTile) + kTile - 1) / kTile;
}

inline int tile_size(int64_t pixels, int64_t tile) {
  return int(tile + 1 == tile_count(pixels) ? pixels - tile * kTile : kTile);
}

// Floats from one row of a packed slab to the next, whole cache lines.
inline int slab_pitch(int count) { return (count + 15) / 16 * 16; }

inline PixelBits first_pixels(int count) {
  const auto ones = [](int bits) {
    return bits >= 64 ? ~uint64_t{0} : (uint64_t{1} << std::max(bits, 0)) - 1;
  };
  return {ones(count), ones(count - 64)};
}

}  // namespace onnxprune
