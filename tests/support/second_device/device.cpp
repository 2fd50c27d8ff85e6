// A device that is none: its memory is the host's, its two indices are kept apart like two GPUs.
//
// Every operator runs on the CPU, after a check that all its tensors are on one device, with the
// exceptions that CUDA makes: numbers (tensors of no dimension) and indices may be on the host.

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <string>

namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr auto kKeys = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
constexpr c10::DeviceIndex kDevices = 2;
thread_local c10::DeviceIndex current = 0;

struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return kType; }
    c10::Device getDevice() const override { return {kType, current}; }
    c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
    void uncheckedSetDevice(c10::Device device) const noexcept override {
        current = device.index();
    }
    void setDevice(c10::Device device) const override {
        TORCH_CHECK(device.index() < kDevices, "expected device 0 or 1; got ", device);
        current = device.index();
    }
    c10::Device exchangeDevice(c10::Device device) const override {
        const auto before = getDevice();
        setDevice(device);
        return before;
    }
    // All work is done when a call returns, so there is one stream and events are nothing.
    c10::Stream getStream(c10::Device device) const override {
        return c10::Stream(c10::Stream::DEFAULT, device);
    }
    c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
    void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
    void block(void*, const c10::Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Memory final : c10::Allocator {
    c10::DataPtr allocate(size_t n) override {
        void* data = n ? std::malloc(n) : nullptr;
        return {data, data, &std::free, {kType, current}};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
    void copy_data(void* to, const void* from, size_t n) const override {
        default_copy_data(to, from, n);
    }
};
Memory memory;
REGISTER_ALLOCATOR(kType, &memory)

struct Hooks final : at::PrivateUse1HooksInterface {
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return kDevices; }
    c10::DeviceIndex getCurrentDevice() const override { return current; }
    void setCurrentDevice(c10::DeviceIndex device) const override { current = device; }
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
        return std::exchange(current, device);
    }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
        return std::exchange(current, device);
    }
};
const bool hooked = [] {
    at::RegisterPrivateUse1HooksInterface(new Hooks());
    return true;
}();

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
    const c10::DeviceGuard there(device.value_or(c10::Device(kType, current)));
    return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
    const c10::DeviceGuard there(device.value_or(c10::Device(kType, current)));
    return at::detail::empty_strided_generic(size, stride, &memory, kKeys,
                                             c10::dtype_or_default(dtype));
}

// The tensor's memory as one of the CPU.
at::Tensor on_host(const at::Tensor& x) {
    if (x.is_cpu()) return x;
    const auto options = at::TensorOptions().dtype(x.scalar_type()).device(at::kCPU);
    return at::from_blob(x.data_ptr(), x.sizes(), x.strides(), options);
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
    on_host(to).copy_(on_host(from));
    return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
    if (to.sizes() != from.sizes()) {
        TORCH_CHECK(to.numel() == 0, "expected an empty tensor or one of the same size");
        const auto fresh = at::empty_like(from, to.options());
        to.unsafeGetTensorImpl()->set_storage_keep_dtype(fresh.storage());
        to.unsafeGetTensorImpl()->set_sizes_and_strides(fresh.sizes(), fresh.strides());
    }
    return copy_from(from, to, false);
}

at::Scalar number(const at::Tensor& x) { return on_host(x).item(); }

at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size,
                        c10::IntArrayRef stride) {
    return at::native::set_storage_cpu_(self, std::move(source), offset, size, stride);
}

void require_one_device(const c10::OperatorHandle& op, const torch::jit::Stack& arguments) {
    const auto& name = op.schema().name();
    const bool takes_indices = name.find("index") != std::string::npos;
    std::optional<c10::Device> found;
    const auto look = [&](const at::Tensor& x, bool index) {
        if (!x.defined() || (x.is_cpu() && (x.dim() == 0 || index))) return;
        TORCH_CHECK(!found || *found == x.device(), "expected all tensors of ", name,
                    " on one device; found ", *found, " and ", x.device());
        found = x.device();
    };
    for (const auto& value : torch::jit::last(arguments, op.schema().arguments().size())) {
        if (value.isTensor()) look(value.toTensor(), false);
        if (value.isTensorList())
            for (const at::Tensor& x : value.toTensorVector()) look(x, takes_indices);
        if (value.isOptionalTensorList())
            for (const std::optional<at::Tensor>& x : value.toOptionalTensorVector())
                if (x) look(*x, takes_indices);
    }
}

void on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    require_one_device(op, *stack);
    at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
    m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
    m.impl("empty.memory_format", &empty);
    m.impl("empty_strided", &empty_strided);
    m.impl("_copy_from", &copy_from);
    m.impl("_copy_from_and_resize", &copy_from_and_resize);
    m.impl("_local_scalar_dense", &number);
    m.impl("as_strided", &at::native::as_strided_tensorimpl);
    m.impl("view", &at::native::view);
    m.impl("unfold", &at::native::unfold);
    m.impl("_reshape_alias", &at::native::_reshape_alias);
    m.impl("set_.source_Storage_storage_offset", &set_storage);
}

}  // namespace
