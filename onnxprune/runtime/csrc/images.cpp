#include "images.h"

namespace onnxprune {

Images images_of(const Tensor& x, const WindowSpec& window, bool flat, int64_t channels,
                 int64_t outputs) {
  const size_t rank = flat ? 3 : 4;
  if (x.shape.size() != rank || x.shape[1] != channels) {
    refuse("X has the shape " + listed(x.shape) + "; expected " + std::to_string(rank) +
           " axes with " + std::to_string(channels) + " channels");
  }
  Images images{x.shape[0], flat ? 1 : x.shape[2], x.shape[rank - 1], {}};
  const int64_t size = images.height * images.width * channels;
  if (size > INT32_MAX) {
    refuse("an image of X has " + std::to_string(size) +
           " elements; at most 2147483647 are supported");
  }
  images.output_shape = {images.batch, outputs, window.output_size(0, images.height),
                         window.output_size(1, images.width)};
  if (flat) images.output_shape.erase(images.output_shape.begin() + 2);
  return images;
}

}  // namespace onnxprune
