#include "geometry.h"

#include <algorithm>
#include <array>

#include "tiles.h"

namespace onnxprune {
namespace {

void set_bits(std::vector<uint64_t>& bits, int64_t from, int64_t to) {
  for (int64_t at = from; at < to;) {
    const int64_t end = std::min(to, (at / 64 + 1) * 64);
    const int64_t count = end - at;
    const uint64_t ones = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
    bits[size_t(at / 64)] |= ones << at % 64;
    at = end;
  }
}

// Output positions, of `size`, whose input position `position * stride + offset` lies within
// `input_size`.
std::pair<int64_t, int64_t> positions_inside(int64_t size, int64_t stride, int64_t offset,
                                             int64_t input_size) {
  const int64_t first = offset >= 0 ? 0 : (-offset + stride - 1) / stride;
  const int64_t last = input_size - 1 - offset;  // largest position * stride
  const int64_t end = last < 0 ? 0 : std::min(size, last / stride + 1);
  return {std::min(first, end), end};
}

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

}  // namespace

Geometry::Geometry(const WindowSpec& spec, int64_t channels, int64_t height, int64_t width,
                   bool tiled)
    : spec_(spec),
      channels_(channels),
      height_(height),
      width_(width),
      out_height_(spec.output_size(0, height)),
      out_width_(spec.output_size(1, width)),
      // An image of one tile is the same in both layouts.
      tiled_(tiled && tile_count(height * width) > 1),
      // Rows of a phase must be as long as those of the output, and hold all of its columns.
      phased_(!tiled_ && spec.strides[0] * spec.strides[1] > 1 &&
              (width + spec.strides[1] - 1) / spec.strides[1] <= out_width_),
      shifts_suffice_(phased_ || (!tiled_ && spec.strides[0] == 1 && spec.strides[1] == 1 &&
                                  width == out_width_)),
      phase_rows_((height + spec.strides[0] - 1) / spec.strides[0]) {
  if (shifts_suffice_ && !spec.pointwise() && out_pixels() > 0) mark_borders();
}

size_t Geometry::phase_of(int64_t row, int64_t column) {
  for (size_t i = 0; i < phases_.size(); ++i) {
    if (phases_[i].row == row && phases_[i].column == column) return i;
  }
  phases_.push_back({row, column});
  return phases_.size() - 1;
}

void Geometry::mark_borders() {
  // One word more than needed: the last tile may end in the middle of it.
  const auto words = size_t(out_pixels() / 64 + 2);
  const int64_t down_stride = spec_.strides[0], right_stride = spec_.strides[1];
  for (int64_t k = 0; k < spec_.kernel[0]; ++k) {
    Bits bits(words, 0);
    const auto [from, to] = positions_inside(out_height_, down_stride,
                                             k * spec_.dilations[0] - spec_.pads[0], height_);
    set_bits(bits, from * out_width_, to * out_width_);
    rows_inside_.push_back(std::move(bits));
  }
  for (int64_t k = 0; k < spec_.kernel[1]; ++k) {
    Bits bits(words, 0);
    const auto [from, to] = positions_inside(out_width_, right_stride,
                                             k * spec_.dilations[1] - spec_.pads[1], width_);
    for (int64_t y = 0; y < out_height_; ++y) {
      set_bits(bits, y * out_width_ + from, y * out_width_ + to);
    }
    columns_inside_.push_back(std::move(bits));
  }
  for (int64_t ky = 0; ky < spec_.kernel[0]; ++ky) {
    for (int64_t kx = 0; kx < spec_.kernel[1]; ++kx) {
      const int64_t down = ky * spec_.dilations[0] - spec_.pads[0];
      const int64_t right = kx * spec_.dilations[1] - spec_.pads[1];
      const int64_t row = floor_div(down, down_stride), column = floor_div(right, right_stride);
      ptrdiff_t shift = row * out_width_ + column;
      if (phased_) {
        const size_t phase = phase_of(down - row * down_stride, right - column * right_stride);
        shift += ptrdiff_t(phase) * phase_size();
      }
      tap_shifts_.push_back(shift);
    }
  }
}

void Geometry::split(const KernelSet& kernels, const float* channel, float* phases) const {
  const int64_t down = spec_.strides[0], right = spec_.strides[1];
  for (int64_t top = 0; top < down; ++top) {
    std::array<float*, 2> columns{};  // where the first two columns go
    for (size_t i = 0; i < phases_.size(); ++i) {
      const Phase& phase = phases_[i];
      float* to = phases + ptrdiff_t(i) * phase_size();
      if (phase.row != top) continue;
      if (right == 2) {
        columns[size_t(phase.column)] = to;
        continue;
      }
      for (int64_t y = top; y < height_; y += down, to += out_width_) {
        const float* from = channel + y * width_;
        float* at = to;
        for (int64_t x = phase.column; x < width_; x += right) *at++ = from[x];
      }
    }
    if (top < height_ && (columns[0] || columns[1])) {
      const auto rows = size_t((height_ - top + down - 1) / down);
      kernels.part_columns(channel + top * width_, ptrdiff_t(down * width_), rows, size_t(width_),
                           columns[0], columns[1], ptrdiff_t(out_width_));
    }
  }
}

const Shift* Geometry::shifts(Scratch& scratch, int64_t tile) const {
  auto* taps = scratch.taps.array<Shift>(spec_.taps());
  const auto first_pixel = ptrdiff_t(tile * kTile);
  const Shift all = unshifted(first_pixel, tile_size(out_pixels(), tile));
  if (spec_.pointwise()) {
    taps[0] = all;
    return taps;
  }
  const auto word = size_t(tile);
  Shift* tap = taps;
  for (const Bits& row : rows_inside_) {
    for (const Bits& column : columns_inside_) {
      const uint64_t low = row[word] & column[word], high = row[word + 1] & column[word + 1];
      tap->shift = first_pixel + tap_shifts_[size_t(tap - taps)];
      tap->whole = all.whole;
      for (int i = 0; i < kMaxTile / 16; ++i) {
        tap->inside[i] = uint16_t((i < 4 ? low >> 16 * i : high) & all.inside[i]);
        tap->whole = tap->whole && tap->inside[i] == all.inside[i];
      }
      ++tap;
    }
  }
  return taps;
}

const WindowList* Geometry::windows(Scratch& scratch, int64_t tile, int vector_width) const {
  const int64_t first_pixel = tile * kTile;
  const int count = tile_size(out_pixels(), tile);
  const auto rows = int(spec_.kernel[0]), columns = int(spec_.kernel[1]);
  auto* lists = scratch.taps.array<WindowList>(spec_.taps());
  auto* next = scratch.windows.array<Window>(spec_.taps() * size_t(kMaxTile));
  const auto height = int32_t(height_), row_size = int32_t(width_);
  const auto pixels = int32_t(in_pixels());
  int32_t top[kMaxTile], left[kMaxTile];  // where the first tap of each pixel lies
  int64_t y = first_pixel / out_width_, x = first_pixel % out_width_;
  for (int i = 0; i < count; ++i) {
    top[i] = int32_t(y * spec_.strides[0] - spec_.pads[0]);
    left[i] = int32_t(x * spec_.strides[1] - spec_.pads[1]);
    if (++x == out_width_) {
      x = 0;
      ++y;
    }
  }
  const auto tiles = int32_t(tiled_ ? tile_count(pixels) : 1);
  for (int ky = 0; ky < rows; ++ky) {
    for (int kx = 0; kx < columns; ++kx) {
      const auto down = int32_t(ky * spec_.dilations[0]), right = int32_t(kx * spec_.dilations[1]);
      Window* const first = next;
      Window* window = nullptr;
      for (int i = 0; i < count; ++i) {
        const int32_t at_y = top[i] + down, at_x = left[i] + right;
        if (at_y < 0 || at_y >= height || at_x < 0 || at_x >= row_size) continue;
        int32_t base = at_y * row_size + at_x, stride = pixels, place = base;
        if (tiled_) {
          const int32_t source = std::min(base / kTile, tiles - 1);
          stride = source + 1 == tiles ? pixels - source * kTile : kTile;
          place -= source * kTile;
          base += source * kTile * int32_t(channels_ - 1);
        }
        // Pixels rise, so the last window is the only one that may hold this one, too.
        const int lane = i % vector_width;
        if (!window || window->vector != i / vector_width || window->stride != stride ||
            base - window->base >= 2 * vector_width) {
          window = next++;
          window->base = base;
          window->stride = stride;
          window->needed = 0;
          window->lanes = 0;
          window->every_second = false;
          window->vector = uint16_t(i / vector_width);
        }
        window->index[lane] = base - window->base;
        window->needed |= uint32_t{1} << (base - window->base);
        window->lanes = uint16_t(window->lanes | 1u << lane);
        // Steps of two, or others of one length where rows end: the last lane tells. It is `place`
        // floats behind the first one of its channel (in its tile), which has `stride`.
        window->every_second = spec_.strides[1] == 2 && window->lanes + 1u == 1u << vector_width &&
                               window->index[lane] == 2 * (vector_width - 1) && place + 1 < stride;
      }
      lists[ky * columns + kx] = {first, size_t(next - first)};
    }
  }
  return lists;
}

}  // namespace onnxprune
