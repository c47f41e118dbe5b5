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
  const size_t tasks = std::max<size_t>(1, size_t(call.batch) * tiles_);
  parts_ = std::min(most, (2 * processors() + tasks - 1) / tasks);
}

void DepthwiseTasks::run(size_t task) const {
  const size_t part = task % parts_;
  const auto tile = int64_t(task / parts_ % tiles_);
  const int64_t image = int64_t(task / parts_ / tiles_);
  const int64_t out_pixels = geometry_.out_pixels();
  const int64_t y_offset = image * spec_.channels * out_pixels + tile * kTile;
  Scratch& own = scratch();

  DepthwiseWork work{};
  work.x = call_.x + image * spec_.channels * geometry_.in_pixels();
  work.channel_stride = geometry_.in_pixels();
  work.weights = call_.weights;
  work.bias = call_.bias;
  work.taps = spec_.window.taps();
  work.from = uint32_t(size_t(spec_.channels) * part / parts_);
  work.to = uint32_t(size_t(spec_.channels) * (part + 1) / parts_);

  Target target{};
  target.y = call_.y + y_offset;
  target.residual = call_.residual ? call_.residual + y_offset : nullptr;
  target.y_pitch = target.residual_pitch = out_pixels;
  target.next_tile = tile + 1 == int64_t(tiles_) ? 0 : kTile;
  target.count = tile_size(out_pixels, tile);
  set_activation(target, spec_.activation, spec_.alpha, spec_.beta);

  if (geometry_.shifts_suffice()) {
    kernels_.depthwise_shifted(work, geometry_.shifts(own, tile), target);
  } else {
    kernels_.depthwise_windows(work, geometry_.windows(own, tile, kernels_.width), target);
  }
}

}  // namespace onnxprune
