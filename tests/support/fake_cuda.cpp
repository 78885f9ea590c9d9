// A CUDA device that holds and does nothing, so that a torch for CPUs runs autograd, DDP and optimizers on
// fake 'cuda' tensors. Load it before torch is imported: torch looks for its hooks once.
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
constexpr int kNumDevices = 8;
thread_local c10::DeviceIndex current = 0;

struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  static c10::Device place(c10::DeviceIndex index) { return {c10::DeviceType::CUDA, index}; }
  c10::Device exchangeDevice(c10::Device to) const override {
    const c10::DeviceIndex from = current;
    current = to.index();
    return place(from);
  }
  c10::Device getDevice() const override { return place(current); }
  void setDevice(c10::Device to) const override { current = to.index(); }
  void uncheckedSetDevice(c10::Device to) const noexcept override { current = to.index(); }
  c10::Stream getStream(c10::Device on) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, place(on.index() < 0 ? current : on.index()));
  }
  c10::Stream getNewStream(c10::Device on, int) const override {
    return c10::Stream(c10::Stream::DEFAULT, on);
  }
  c10::Stream exchangeStream(c10::Stream to) const noexcept override { return to; }
  c10::DeviceIndex deviceCount() const noexcept override { return kNumDevices; }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = this_event();
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  static void* this_event() { return &current; }
};
Guard guard;

}  // namespace

namespace at {
namespace {
struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kNumDevices; }
  int getNumGPUs() const override { return kNumDevices; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  bool hasCuDNN() const override { return true; }
  bool compiledWithCuDNN() const override { return true; }
  long versionCuDNN() const override { return 91000; }
  long versionRuntimeCuDNN() const override { return 91000; }
  long versionCuDNNFrontend() const override { return 11500; }
  long versionCUDART() const override { return 13000; }
  bool hasCUDART() const override { return true; }
  bool hasCuBLASLt() const override { return true; }
  bool supportsDilatedConvolutionWithCuDNN() const override { return true; }
  bool supportsDepthwiseConvolutionWithCuDNN() const override { return true; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override { return true; }
  double batchnormMinEpsilonCuDNN() const override { return 0.0; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  bool isPinnedPtr(const void*) const override { return false; }
};
// torch looks for hooks of this name.
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace
}  // namespace at

extern "C" void install_fake_cuda() {
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(&guard);
}
