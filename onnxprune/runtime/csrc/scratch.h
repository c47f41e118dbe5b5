// Memory that a thread keeps from one call to the next, aligned to cache lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace onnxprune {

class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(memory_); }

  // At least `size` bytes; what was there is lost when it grows. Throws std::bad_alloc.
  void* bytes(size_t size) {
    if (size > size_) {
      std::free(memory_);
      size_ = 0;
      memory_ = std::malloc(size + kLine);
      if (!memory_) throw std::bad_alloc();
      size_ = size;
    }
    const auto address = reinterpret_cast<uintptr_t>(memory_);
    return reinterpret_cast<void*>((address + kLine - 1) / kLine * kLine);
  }

  template <class T>
  T* array(size_t count) {
    return static_cast<T*>(bytes(count * sizeof(T)));
  }

 private:
  static constexpr size_t kLine = 64;
  void* memory_ = nullptr;
  size_t size_ = 0;
};

struct Scratch {
  Buffer slab, sums, taps, windows, phases, rows;
};

inline Scratch& scratch() {
  thread_local Scratch own;
  return own;
}

}  // namespace onnxprune
