#include "convolution.h"

#include "scratch.h"
#include "tiles.h"

namespace onnxprune {

ConvolutionTasks::ConvolutionTasks(const ConvolutionSpec& spec, const PackedWeights& weights,
                                   const KernelSet& kernels, const ConvolutionCall& call)
    : spec_(spec),
      weights_(weights),
      kernels_(kernels),
      call_(call),
      geometry_(spec.window, spec.channels, call.height, call.width, spec.x_tiled),
      y_tiled_(spec.y_tiled && tile_count(geometry_.out_pixels()) > 1),
      tiles_(size_t(tile_count(geometry_.out_pixels()))),
      splits_(0, 1) {
  source_ = geometry_.x_tiled() && spec.window.pointwise() ? Source::kInPlace
            : geometry_.shifts_suffice()                   ? Source::kShifted
                                                           : Source::kWindows;
  const double pack_cycles[] = {0, 2, 6};
  splits_ = Splits::of(weights, size_t(call.batch) * tiles_, tile_size(geometry_.out_pixels(), 0),
                       pack_cycles[int(source_)]);
  if (geometry_.phased()) {
    phase_stride_ = ptrdiff_t(geometry_.phase_count()) * geometry_.phase_size();
    phases_ = scratch().phases.array<float>(size_t(call.batch * spec.channels) *
                                            size_t(phase_stride_));
  }
}

void ConvolutionTasks::prepare(size_t task) const {
  geometry_.split(kernels_, call_.x + ptrdiff_t(task) * geometry_.in_pixels(),
                  phases_ + ptrdiff_t(task) * phase_stride_);
}

void ConvolutionTasks::run(size_t task) const {
  const Part part = splits_.part(task);
  const size_t tile = part.tile % tiles_;
  const int64_t image = int64_t(part.tile / tiles_);
  const int64_t out_pixels = geometry_.out_pixels();
  const int64_t first_pixel = int64_t(tile) * kTile;
  const int count = tile_size(out_pixels, int64_t(tile));
  const size_t from = weights_.chunk_count() * part.piece / part.pieces;
  const size_t to = weights_.chunk_count() * (part.piece + 1) / part.pieces;
  const auto rows = int64_t(weights_.rows());

  Target target{};
  target.count = count;
  set_activation(target, spec_.activation, spec_.alpha, spec_.beta);
  target.y_pitch = y_tiled_ ? count : out_pixels;
  target.residual_pitch = target.y_pitch;
  const bool goes_on = tile + 1 < tiles_ && splits_.goes_on(task);
  target.next_tile = goes_on ? y_tiled_ ? rows * kTile : kTile : 0;
  const int64_t y_offset = image * rows * out_pixels + (y_tiled_ ? first_pixel * rows : first_pixel);
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

  // Rows of a tile that begin on cache lines need no copy.
  const bool in_place = source_ == Source::kInPlace && count % 16 == 0;
  const float* source = call_.x + image * spec_.channels * geometry_.in_pixels();
  ptrdiff_t channel_stride = geometry_.in_pixels();
  const Shift* shifts = nullptr;
  const WindowList* windows = nullptr;
  Shift whole{};
  if (source_ == Source::kWindows) {
    windows = geometry_.windows(own, int64_t(tile), kernels_.width);
  } else if (source_ == Source::kShifted) {
    shifts = geometry_.shifts(own, int64_t(tile));
    if (geometry_.phased()) {
      source = phases_ + image * spec_.channels * phase_stride_;
      channel_stride = phase_stride_;
    }
  } else {
    source += first_pixel * spec_.channels;
    channel_stride = count;
    whole = unshifted(0, count);
    shifts = &whole;
  }

  for (size_t block = 0; block < weights_.block_count(); ++block) {
    if (in_place) {
      work.slab = source + ptrdiff_t(weights_.block_start(block)) * count;
      fetch_ahead(work, source, block, tile);
    } else {
      float* slab = own.slab.array<float>(weights_.largest_block() * size_t(kMaxTile));
      size_t size;
      const SlabRow* slab_rows = weights_.block(block, &size);
      if (windows) {
        kernels_.pack_windows(slab, slab_rows, size, source, windows, count);
      } else {
        kernels_.pack_shifted(slab, slab_rows, size, source, channel_stride, shifts, count);
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

}  // namespace onnxprune
