#include "depthwise.h"

#include <algorithm>

#include "scratch.h"
#include "splits.h"
#include "tiles.h"

namespace onnxprune {
namespace {

// Fewer channels would not be worth finding out what the taps of a tile meet.
constexpr size_t kLeastChannels = 64;

}  // namespace

DepthwiseTasks::DepthwiseTasks(const DepthwiseSpec& spec, const KernelSet& kernels,
                               const DepthwiseCall& call)
    : spec_(spec),
      kernels_(kernels),
      call_(call),
      geometry_(spec.window, spec.channels, call.height, call.width, false),
      tiles_(size_t(tile_count(geometry_.out_pixels()))) {
  const bool whole = geometry_.shifts_suffice();
  const auto channels = size_t(spec.channels);
  const size_t most = whole ? channels : std::max<size_t>(1, channels / kLeastChannels);
  const size_t tasks = std::max<size_t>(1, size_t(call.batch) * (whole ? 1 : tiles_));
  parts_ = processors() == 1 ? 1 : std::min(most, (2 * processors() + tasks - 1) / tasks);
  if (!whole) return;
  for (size_t tile = 0; tile < tiles_; ++tile) {
    const Shift* shifts = geometry_.shifts(scratch(), int64_t(tile));
    shifts_.insert(shifts_.end(), shifts, shifts + spec.window.taps());
  }
}

void DepthwiseTasks::run(size_t task) const {
  const size_t part = task % parts_;
  const auto from = uint32_t(size_t(spec_.channels) * part / parts_);
  const auto to = uint32_t(size_t(spec_.channels) * (part + 1) / parts_);
  if (geometry_.shifts_suffice()) {
    run_channels(int64_t(task / parts_), from, to);
  } else {
    run_tile(int64_t(task / parts_ / tiles_), int64_t(task / parts_ % tiles_), from, to);
  }
}

DepthwiseWork DepthwiseTasks::work(int64_t image, uint32_t from, uint32_t to) const {
  DepthwiseWork work{};
  work.x = call_.x + image * spec_.channels * geometry_.in_pixels();
  work.channel_stride = geometry_.in_pixels();
  work.weights = call_.weights;
  work.bias = call_.bias;
  work.taps = spec_.window.taps();
  work.from = from;
  work.to = to;
  return work;
}

Target DepthwiseTasks::target(int64_t image, int64_t tile) const {
  const int64_t out_pixels = geometry_.out_pixels();
  const int64_t offset = image * spec_.channels * out_pixels + tile * kTile;
  Target target{};
  target.y = call_.y + offset;
  target.residual = call_.residual ? call_.residual + offset : nullptr;
  target.y_pitch = target.residual_pitch = out_pixels;
  target.count = tile_size(out_pixels, tile);
  set_activation(target, spec_.activation, spec_.alpha, spec_.beta);
  return target;
}

void DepthwiseTasks::run_channels(int64_t image, uint32_t from, uint32_t to) const {
  DepthwiseWork own = work(image, from, to);
  const int last_count = tile_size(geometry_.out_pixels(), int64_t(tiles_) - 1);
  if (!geometry_.phased()) {
    kernels_.depthwise_shifted(own, shifts_.data(), tiles_, last_count, target(image, 0));
    return;
  }
  float* phases = scratch().phases.array<float>(geometry_.phase_count() *
                                                size_t(geometry_.phase_size()));
  const float* x = own.x;
  own.x = phases;
  own.channel_stride = 0;
  for (uint32_t channel = from; channel < to; ++channel) {
    geometry_.split(kernels_, x + ptrdiff_t(channel) * geometry_.in_pixels(), phases);
    own.from = channel;
    own.to = channel + 1;
    kernels_.depthwise_shifted(own, shifts_.data(), tiles_, last_count, target(image, 0));
  }
}

void DepthwiseTasks::run_tile(int64_t image, int64_t tile, uint32_t from, uint32_t to) const {
  kernels_.depthwise_windows(work(image, from, to),
                             geometry_.windows(scratch(), tile, kernels_.width),
                             target(image, tile));
}

}  // namespace onnxprune
