#include "convolution.h"

#include <algorithm>

#include "scratch.h"
#include "splits.h"

namespace onnxprune {

ConvolutionTasks::ConvolutionTasks(const ConvolutionSpec& spec, const PackedWeights& weights,
                                   const KernelSet& kernels, const ConvolutionCall& call)
    : spec_(spec), weights_(weights), kernels_(kernels), call_(call) {
  in_pixels_ = call.height * call.width;
  out_pixels_ = call.out_height * call.out_width;
  // An image of one tile is the same in both layouts.
  x_tiled_ = spec.x_tiled && in_pixels_ > kTile;
  y_tiled_ = spec.y_tiled && out_pixels_ > kTile;
  tiles_ = size_t((out_pixels_ + kTile - 1) / kTile);
  if (x_tiled_ && spec.pointwise()) {
    source_ = Source::kInPlace;
  } else if (!x_tiled_ && spec.strides[0] == 1 && spec.strides[1] == 1 &&
             call.width == call.out_width) {
    source_ = Source::kShifted;
  } else {
    source_ = Source::kGathered;
  }
  const double pack_cycles = source_ == Source::kInPlace ? 0.0 : source_ == Source::kShifted ? 2.0 : 16.0;
  splits_ = row_splits(weights, size_t(call.batch) * tiles_,
                       int(std::min<int64_t>(out_pixels_, kTile)), pack_cycles);
}

void ConvolutionTasks::run(size_t task) const {
  const size_t split = task % splits_;
  const size_t tile = task / splits_ % tiles_;
  const int64_t image = int64_t(task / splits_ / tiles_);
  const int64_t first_pixel = int64_t(tile) * kTile;
  const int count = int(std::min<int64_t>(kTile, out_pixels_ - first_pixel));
  const size_t from = weights_.chunk_count() * split / splits_;
  const size_t to = weights_.chunk_count() * (split + 1) / splits_;
  const auto rows = int64_t(weights_.rows());

  Target target{};
  target.count = count;
  target.activation = spec_.activation;
  target.alpha = spec_.alpha;
  target.beta = spec_.beta;
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
                                          size_t(kTile));

  const float* image_start = call_.x + image * spec_.channels * in_pixels_;
  const size_t taps = size_t(spec_.kernel[0] * spec_.kernel[1]);
  const bool in_place = source_ == Source::kInPlace && count == kTile;
  const float* source = image_start;
  ptrdiff_t channel_stride = in_pixels_;
  Shift* shifts = nullptr;
  Gather* gathers = nullptr;
  if (source_ == Source::kGathered) {
    gathers = own.taps.array<Gather>(taps);
    make_gathers(gathers, first_pixel, count);
  } else if (source_ == Source::kShifted) {
    shifts = own.taps.array<Shift>(taps);
    make_shifts(shifts, first_pixel, count);
  } else {
    source = image_start + first_pixel * spec_.channels;
    channel_stride = count;
    shifts = own.taps.array<Shift>(1);
    shifts[0] = {0, count == kTile ? ~uint64_t{0} : (uint64_t{1} << count) - 1};
  }

  for (size_t block = 0; block < weights_.block_count(); ++block) {
    if (in_place) {
      work.slab = source + ptrdiff_t(weights_.block_start(block)) * kTile;
    } else {
      float* slab = own.slab.array<float>(weights_.largest_block() * size_t(kTile));
      size_t size;
      const SlabRow* slab_rows = weights_.block(block, &size);
      if (gathers) {
        kernels_.pack_gathered(slab, slab_rows, size, source, gathers, count);
      } else {
        kernels_.pack_shifted(slab, slab_rows, size, source, channel_stride, shifts, count);
      }
      work.slab = slab;
    }
    weights_.multiply(block, from, to, work, target);
  }
}

void ConvolutionTasks::make_shifts(Shift* taps, int64_t first_pixel, int count) const {
  const uint64_t all = count == kTile ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  // Bits of the pixels whose row (column) of the tap lies inside the image.
  const auto rows = size_t(spec_.kernel[0]), columns = size_t(spec_.kernel[1]);
  if (rows * columns == 1 && spec_.pointwise()) {
    taps[0] = {ptrdiff_t(first_pixel), all};
    return;
  }
  std::vector<uint64_t> inside(rows + columns, 0);
  int64_t y = first_pixel / call_.out_width, x = first_pixel % call_.out_width;
  for (int i = 0; i < count; ++i) {
    const uint64_t bit = uint64_t{1} << i;
    for (size_t k = 0; k < rows; ++k) {
      const int64_t at = y + int64_t(k) * spec_.dilations[0] - spec_.pads[0];
      if (at >= 0 && at < call_.height) inside[k] |= bit;
    }
    for (size_t k = 0; k < columns; ++k) {
      const int64_t at = x + int64_t(k) * spec_.dilations[1] - spec_.pads[1];
      if (at >= 0 && at < call_.width) inside[rows + k] |= bit;
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
      taps[ky * columns + kx] = {ptrdiff_t(first_pixel + down * call_.width + right),
                                 inside[ky] & inside[rows + kx]};
    }
  }
}

void ConvolutionTasks::make_gathers(Gather* taps, int64_t first_pixel, int count) const {
  const int64_t columns = spec_.kernel[1];
  for (int64_t tap = 0; tap < spec_.kernel[0] * columns; ++tap) {
    Gather& gather = taps[tap];
    const int64_t down = tap / columns * spec_.dilations[0] - spec_.pads[0];
    const int64_t right = tap % columns * spec_.dilations[1] - spec_.pads[1];
    for (int i = 0; i < kTile; ++i) {
      const int64_t pixel = first_pixel + i;
      const int64_t y = pixel / call_.out_width * spec_.strides[0] + down;
      const int64_t x = pixel % call_.out_width * spec_.strides[1] + right;
      if (i >= count || y < 0 || y >= call_.height || x < 0 || x >= call_.width) {
        gather.base[i] = -1;
        gather.stride[i] = 0;
        continue;
      }
      const int64_t from = y * call_.width + x;
      if (x_tiled_) {
        const int64_t tile_start = from / kTile * kTile;
        gather.stride[i] = int32_t(std::min<int64_t>(kTile, in_pixels_ - tile_start));
        gather.base[i] = int32_t(tile_start * spec_.channels + from - tile_start);
      } else {
        gather.stride[i] = int32_t(in_pixels_);
        gather.base[i] = int32_t(from);
      }
    }
  }
}

}  // namespace onnxprune
