#include "convolution.h"

#include <algorithm>

#include "scratch.h"
#include "splits.h"
#include "tiles.h"

namespace onnxprune {

ConvolutionTasks::ConvolutionTasks(const ConvolutionSpec& spec, const PackedWeights& weights,
                                   const KernelSet& kernels, const ConvolutionCall& call)
    : spec_(spec), weights_(weights), kernels_(kernels), call_(call) {
  in_pixels_ = call.height * call.width;
  out_pixels_ = call.out_height * call.out_width;
  // An image of one tile is the same in both layouts.
  x_tiled_ = spec.x_tiled && tile_count(in_pixels_) > 1;
  y_tiled_ = spec.y_tiled && tile_count(out_pixels_) > 1;
  tiles_ = size_t(tile_count(out_pixels_));
  if (x_tiled_ && spec.pointwise()) {
    source_ = Source::kInPlace;
  } else if (!x_tiled_ && spec.strides[0] == 1 && spec.strides[1] == 1 &&
             call.width == call.out_width) {
    source_ = Source::kShifted;
  } else {
    source_ = Source::kWindows;
  }
  const double pack_cycles[] = {0, 2, 6};
  splits_ = row_splits(weights, size_t(call.batch) * tiles_, tile_size(out_pixels_, 0),
                       pack_cycles[int(source_)]);
}

void ConvolutionTasks::run(size_t task) const {
  const size_t split = task % splits_;
  const size_t tile = task / splits_ % tiles_;
  const int64_t image = int64_t(task / splits_ / tiles_);
  const int64_t first_pixel = int64_t(tile) * kTile;
  const int count = tile_size(out_pixels_, int64_t(tile));
  const size_t from = weights_.chunk_count() * split / splits_;
  const size_t to = weights_.chunk_count() * (split + 1) / splits_;
  const auto rows = int64_t(weights_.rows());

  Target target{};
  target.count = count;
  set_activation(target, spec_.activation, spec_.alpha, spec_.beta);
  target.y_pitch = y_tiled_ ? count : out_pixels_;
  target.residual_pitch = target.y_pitch;
  const int64_t y_offset = image * rows * out_pixels_ + (y_tiled_ ? first_pixel * rows : first_pixel);
  target.y = call_.y + y_offset;
  target.residual = call_.residual ? call_.residual + y_offset : nullptr;

  Scratch& own = scratch();
  BlockWork work{};
  work.bias = call_.bias;
  work.last = true;
  work.sums = weights_.block_count() == 1
                  ? nullptr
                  : own.sums.array<float>((weights_.chunk_start(to) - weights_.chunk_start(from)) *
                                          size_t(kMaxTile));

  const float* image_start = call_.x + image * spec_.channels * in_pixels_;
  const size_t taps = size_t(spec_.kernel[0] * spec_.kernel[1]);
  // Rows of a tile that begin on cache lines need no copy.
  const bool in_place = source_ == Source::kInPlace && count % 16 == 0;
  const float* source = image_start;
  ptrdiff_t channel_stride = in_pixels_;
  Shift* shifts = nullptr;
  WindowList* windows = nullptr;
  if (source_ == Source::kWindows) {
    windows = make_windows(own, first_pixel, count);
  } else if (source_ == Source::kShifted) {
    shifts = own.taps.array<Shift>(taps);
    make_shifts(shifts, first_pixel, count);
  } else {
    source = image_start + first_pixel * spec_.channels;
    channel_stride = count;
    shifts = own.taps.array<Shift>(1);
    shifts[0] = {0, first_pixels(count)};
  }

  const int pitch = slab_pitch(count);
  work.slab_pitch = uint32_t(pitch) * sizeof(float);
  for (size_t block = 0; block < weights_.block_count(); ++block) {
    if (in_place) {
      work.slab = source + ptrdiff_t(weights_.block_start(block)) * count;
      fetch_ahead(work, source, block, tile);
    } else {
      float* slab = own.slab.array<float>(weights_.largest_block() * size_t(kMaxTile));
      size_t size;
      const SlabRow* slab_rows = weights_.block(block, &size);
      if (windows) {
        kernels_.pack_windows(slab, pitch, slab_rows, size, source, windows, count);
      } else {
        kernels_.pack_shifted(slab, pitch, slab_rows, size, source, channel_stride, shifts, count);
      }
      work.slab = slab;
    }
    weights_.multiply(block, from, to, work, target);
  }
}

void ConvolutionTasks::fetch_ahead(BlockWork& work, const float* tile_start, size_t block,
                                   size_t tile) const {
  const size_t next = block + 1;
  if (next < weights_.block_count()) {
    work.ahead = tile_start + ptrdiff_t(weights_.block_start(next)) * kTile;
    work.ahead_floats = (weights_.block_start(next + 1) - weights_.block_start(next)) * kTile;
  } else if (tile + 1 < tiles_) {
    work.ahead = tile_start + ptrdiff_t(spec_.channels) * kTile;
    work.ahead_floats = weights_.block_start(1) * kTile;
  } else {
    work.ahead_floats = 0;
  }
}

void ConvolutionTasks::make_shifts(Shift* taps, int64_t first_pixel, int count) const {
  if (spec_.pointwise()) {
    taps[0] = {ptrdiff_t(first_pixel), first_pixels(count)};
    return;
  }
  // Bits of the pixels whose row (column) of the tap lies inside the image.
  const auto rows = size_t(spec_.kernel[0]), columns = size_t(spec_.kernel[1]);
  std::vector<PixelBits> inside(rows + columns, PixelBits{0, 0});
  int64_t y = first_pixel / call_.out_width, x = first_pixel % call_.out_width;
  for (int i = 0; i < count; ++i) {
    const uint64_t bit = uint64_t{1} << i % 64;
    for (size_t k = 0; k < rows; ++k) {
      const int64_t at = y + int64_t(k) * spec_.dilations[0] - spec_.pads[0];
      if (at >= 0 && at < call_.height) (i < 64 ? inside[k].low : inside[k].high) |= bit;
    }
    for (size_t k = 0; k < columns; ++k) {
      const int64_t at = x + int64_t(k) * spec_.dilations[1] - spec_.pads[1];
      PixelBits& column = inside[rows + k];
      if (at >= 0 && at < call_.width) (i < 64 ? column.low : column.high) |= bit;
    }
    if (++x == call_.out_width) {
      x = 0;
      ++y;
    }
  }
  for (size_t ky = 0; ky < rows; ++ky) {
    for (size_t kx = 0; kx < columns; ++kx) {
      const int64_t down = int64_t(ky) * spec_.dilations[0] - spec_.pads[0];
      const int64_t right = int64_t(kx) * spec_.dilations[1] - spec_.pads[1];
      const PixelBits& row = inside[ky];
      const PixelBits& column = inside[rows + kx];
      taps[ky * columns + kx] = {ptrdiff_t(first_pixel + down * call_.width + right),
                                 {row.low & column.low, row.high & column.high}};
    }
  }
}

WindowList* ConvolutionTasks::make_windows(Scratch& own, int64_t first_pixel, int count) const {
  const auto rows = int(spec_.kernel[0]), columns = int(spec_.kernel[1]);
  const auto taps = size_t(rows * columns);
  auto* lists = own.taps.array<WindowList>(taps);
  auto* next = own.windows.array<Window>(taps * size_t(kMaxTile));
  const int width = kernels_.width;
  const auto height = int32_t(call_.height), row_size = int32_t(call_.width);
  int32_t top[kMaxTile], left[kMaxTile];  // where the first tap of each pixel lies
  int64_t y = first_pixel / call_.out_width, x = first_pixel % call_.out_width;
  for (int i = 0; i < count; ++i) {
    top[i] = int32_t(y * spec_.strides[0] - spec_.pads[0]);
    left[i] = int32_t(x * spec_.strides[1] - spec_.pads[1]);
    if (++x == call_.out_width) {
      x = 0;
      ++y;
    }
  }
  const auto tiles = int32_t(x_tiled_ ? tile_count(in_pixels_) : 1);
  for (int ky = 0; ky < rows; ++ky) {
    for (int kx = 0; kx < columns; ++kx) {
      const auto down = int32_t(ky * spec_.dilations[0]), right = int32_t(kx * spec_.dilations[1]);
      Window* const first = next;
      Window* window = nullptr;
      for (int i = 0; i < count; ++i) {
        const int32_t at_y = top[i] + down, at_x = left[i] + right;
        if (at_y < 0 || at_y >= height || at_x < 0 || at_x >= row_size) continue;
        int32_t base = at_y * row_size + at_x, stride = int32_t(in_pixels_);
        if (x_tiled_) {
          const int32_t tile = std::min(base / kTile, tiles - 1);
          stride = tile + 1 == tiles ? int32_t(in_pixels_) - tile * kTile : kTile;
          base += tile * kTile * int32_t(spec_.channels - 1);
        }
        // Pixels rise, so the last window is the only one that may hold this one, too.
        const int lane = i % width;
        if (!window || window->vector != i / width || window->stride != stride ||
            base - window->base >= 2 * width) {
          window = next++;
          window->base = base;
          window->stride = stride;
          window->needed = 0;
          window->lanes = 0;
          window->vector = uint16_t(i / width);
        }
        window->index[lane] = base - window->base;
        window->needed |= uint32_t{1} << (base - window->base);
        window->lanes = uint16_t(window->lanes | 1u << lane);
      }
      lists[ky * columns + kx] = {first, size_t(next - first)};
    }
  }
  return lists;
}

}  // namespace onnxprune
