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
  const size_t most = std::max<size_t>(1, size_t(spec.channels) / kLeastChannels);
  const size_t tasks = std::max<size_t>(1, size_t(call.batch) * (geometry_.phased() ? 1 : tiles_));
  parts_ = std::min(most, (2 * processors() + tasks - 1) / tasks);
  if (geometry_.phased()) {
    for (size_t tile = 0; tile < tiles_; ++tile) {
      const Shift* shifts = geometry_.shifts(scratch(), int64_t(tile));
      shifts_.insert(shifts_.end(), shifts, shifts + spec.window.taps());
    }
  }
}

void DepthwiseTasks::run(size_t task) const {
  const size_t part = task % parts_;
  const auto from = uint32_t(size_t(spec_.channels) * part / parts_);
  const auto to = uint32_t(size_t(spec_.channels) * (part + 1) / parts_);
  if (geometry_.phased()) {
    run_phased(int64_t(task / parts_), from, to);
    return;
  }
  const auto tile = int64_t(task / parts_ % tiles_);
  const int64_t image = int64_t(task / parts_ / tiles_);
  DepthwiseWork work{};
  work.x = call_.x + image * spec_.channels * geometry_.in_pixels();
  work.channel_stride = geometry_.in_pixels();
  work.from = from;
  work.to = to;
  run_tile(work, image, tile,
           geometry_.shifts_suffice() ? geometry_.shifts(scratch(), tile) : nullptr);
}

void DepthwiseTasks::run_phased(int64_t image, uint32_t from, uint32_t to) const {
  const size_t taps = spec_.window.taps();
  float* phases = scratch().phases.array<float>(geometry_.phase_count() *
                                                size_t(geometry_.phase_size()));
  for (uint32_t channel = from; channel < to; ++channel) {
    const float* x = call_.x + (image * spec_.channels + channel) * geometry_.in_pixels();
    geometry_.split(kernels_, x, phases);
    DepthwiseWork work{};
    work.x = phases;
    work.channel_stride = 0;
    work.from = channel;
    work.to = channel + 1;
    for (size_t tile = 0; tile < tiles_; ++tile) {
      run_tile(work, image, int64_t(tile), shifts_.data() + tile * taps);
    }
  }
}

void DepthwiseTasks::run_tile(DepthwiseWork work, int64_t image, int64_t tile,
                              const Shift* shifts) const {
  const int64_t out_pixels = geometry_.out_pixels();
  const int64_t y_offset = image * spec_.channels * out_pixels + tile * kTile;
  work.weights = call_.weights;
  work.bias = call_.bias;
  work.taps = spec_.window.taps();
  Target target{};
  target.y = call_.y + y_offset;
  target.residual = call_.residual ? call_.residual + y_offset : nullptr;
  target.y_pitch = target.residual_pitch = out_pixels;
  target.count = tile_size(out_pixels, tile);
  set_activation(target, spec_.activation, spec_.alpha, spec_.beta);
  if (shifts) {
    kernels_.depthwise_shifted(work, shifts, target);
  } else {
    kernels_.depthwise_windows(work, geometry_.windows(scratch(), tile, kernels_.width), target);
  }
}

}  // namespace onnxprune
