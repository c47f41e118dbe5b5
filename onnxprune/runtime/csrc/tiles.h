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

// A tap that sees the pixels of a tile themselves.
inline Shift unshifted(ptrdiff_t shift, int count) {
  Shift tap{shift, {}, count % 16 == 0};
  for (int i = 0; i < count; ++i) tap.inside[i / 16] = uint16_t(tap.inside[i / 16] | 1u << i % 16);
  return tap;
}

}  // namespace onnxprune
