// Windows that move over images, as the nodes of convolutions say them.
#pragma once

#include "geometry.h"
#include "node.h"

namespace onnxprune {

// The attributes of a convolution's window, with one or two spatial axes.
class WindowAttributes {
 public:
  explicit WindowAttributes(const Attributes& attributes) : attributes_(attributes) {
    const std::vector<int64_t> kernel = attributes.integers("kernel_shape");
    flat_ = kernel.size() == 1;
    if (kernel.empty() || kernel.size() > 2) {
      refuse("kernel_shape is " + listed(kernel) + "; expected one or two sizes");
    }
    read("kernel_shape", spec_.kernel);
    read("strides", spec_.strides);
    read("dilations", spec_.dilations);
    read_pads();
    if (spec_.kernel[0] * spec_.kernel[1] > 65536) {
      refuse("kernel_shape is " + listed(kernel) + "; at most 65536 taps are supported");
    }
  }

  const WindowSpec& spec() const { return spec_; }
  bool flat() const { return flat_; }

 private:
  // One or two values into (height, width); the height of a one-dimensional node is 1.
  void read(const char* name, int64_t (&to)[2]) const {
    const std::vector<int64_t> values = attributes_.integers(name);
    if (values.size() != (flat_ ? 1u : 2u)) {
      refuse(std::string(name) + " is " + listed(values) + "; expected " + (flat_ ? "one" : "two") +
             " values");
    }
    to[0] = flat_ ? 1 : values[0];
    to[1] = values.back();
    for (int64_t value : values) {
      if (value < 1 || value > 65536) {
        refuse(std::string(name) + " is " + listed(values) + "; expected 1 to 65536");
      }
    }
  }

  void read_pads() {
    const std::vector<int64_t> values = attributes_.integers("pads");
    if (values.size() != (flat_ ? 2u : 4u)) {
      refuse("pads is " + listed(values) + "; expected " + (flat_ ? "two" : "four") + " values");
    }
    for (int64_t value : values) {
      if (value < 0 || value > 65536) {
        refuse("pads is " + listed(values) + "; expected 0 to 65536");
      }
    }
    if (flat_) {
      spec_.pads[1] = values[0];
      spec_.pads[3] = values[1];
    } else {
      std::copy(values.begin(), values.end(), spec_.pads);
    }
  }

  const Attributes& attributes_;
  WindowSpec spec_;
  bool flat_ = false;
};

// An input of one or two spatial axes, and what a window makes of it.
struct Images {
  int64_t batch, height, width;
  std::vector<int64_t> output_shape;
};

Images images_of(const Tensor& x, const WindowSpec& window, bool flat, int64_t channels,
                 int64_t outputs);

}  // namespace onnxprune
