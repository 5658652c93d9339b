//! Real arrays: what compiled functions take and give.

use std::fmt;
use std::sync::Arc;

use tilewright_cpu::memory::Aligned;
use tilewright_cuda::driver::DeviceMemory;
use tilewright_ir::element_count;
use tilewright_schedule::Layout;
use tilewright_trace::tree::{Entry, MapLeaves, Mapper, Path, Tree, Visitor};

use crate::{DType, Device, Element, Error, Result, Type};

/// An array: element type, shape, and shared elements that never change, on some device. Cloning is cheap.
///
/// What a program on a GPU computes stays there, and the program may still be running when its results are handed
/// out. Reading elements waits for the device, and reports what went wrong there since it was last waited for.
///
/// ```
/// use tilewright::Array;
///
/// let x = Array::new([2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// assert_eq!(x.transpose().to_vec::<f32>()?, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
/// # Ok::<(), tilewright::Error>(())
/// ```
#[derive(Clone)]
pub struct Array {
    ty: Type,
    /// Elements between neighbours along each axis, and the element at the origin.
    layout: Layout,
    data: Arc<Data>,
}

/// Where elements are.
enum Data {
    Host(Aligned<u8>),
    Device(DeviceMemory),
}

/// The layout of a packed array in row-major order.
pub(crate) fn packed(shape: &[usize]) -> Layout {
    let mut strides = vec![1isize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1) as isize;
    }
    Layout { strides, offset: 0 }
}

/// Calls `f` with the place of each element of a strided array, in row-major order.
fn for_each_element(shape: &[usize], layout: &Layout, mut f: impl FnMut(usize)) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0; shape.len()];
    let mut place = layout.offset;
    loop {
        f(place as usize);
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            place += layout.strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            place -= layout.strides[axis] * shape[axis] as isize;
            index[axis] = 0;
        }
    }
}

impl Array {
    /// An array from its elements in row-major order.
    ///
    /// # Errors
    /// `Shape` where there are not as many elements as the shape has.
    pub fn new<T: Element>(shape: impl Into<Vec<usize>>, elements: &[T]) -> Result<Array> {
        let ty = Type::new(T::DTYPE, shape);
        if element_count(&ty.shape)? != elements.len() {
            return Err(Error::shape("elements", format!("as many as {:?} has", ty.shape), elements.len()));
        }
        Array::filled(ty, |bytes| T::write(elements, bytes))
    }

    /// An array of rank 0.
    pub fn scalar<T: Element>(element: T) -> Array {
        Array::new([], &[element]).expect("one element fits rank 0")
    }

    /// An array whose element at each index `f` gives.
    ///
    /// # Errors
    /// `TooLarge`, `OutOfMemory`.
    pub fn from_fn<T: Element>(
        shape: impl Into<Vec<usize>>,
        mut f: impl FnMut(&[usize]) -> T,
    ) -> Result<Array> {
        let shape = shape.into();
        let mut elements = Vec::with_capacity(element_count(&shape)?);
        let mut index = vec![0; shape.len()];
        for _ in 0..elements.capacity().min(shape.iter().product()) {
            elements.push(f(&index));
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        Array::new(shape, &elements)
    }

    /// Zeros; `false` for `bool`.
    ///
    /// # Errors
    /// `TooLarge`, `OutOfMemory`.
    pub fn zeros(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Array> {
        let ty = Type::new(dtype, shape);
        element_count(&ty.shape)?;
        Array::filled(ty, |_| ())
    }

    /// An array from its packed bytes, in the byte order of the machine.
    ///
    /// # Errors
    /// `Shape` where there are not as many bytes as the type takes.
    pub fn from_bytes(dtype: DType, shape: impl Into<Vec<usize>>, bytes: &[u8]) -> Result<Array> {
        let ty = Type::new(dtype, shape);
        let expected = element_count(&ty.shape)? * dtype.size();
        if bytes.len() != expected {
            return Err(Error::shape("bytes", format!("{expected} for {ty}"), bytes.len()));
        }
        Array::filled(ty, |place| place.copy_from_slice(bytes))
    }

    /// A packed array whose bytes, zero at first, `fill` writes.
    pub(crate) fn filled(ty: Type, fill: impl FnOnce(&mut [u8])) -> Result<Array> {
        let mut data = Aligned::new(ty.bytes())?;
        fill(&mut data);
        Ok(Array { layout: packed(&ty.shape), ty, data: Arc::new(Data::Host(data)) })
    }

    /// Packed arrays of the given types whose bytes, zero at first, `fill` writes.
    pub(crate) fn filled_all(
        types: &[Type],
        fill: impl FnOnce(&mut [&mut [u8]]) -> Result<()>,
    ) -> Result<Vec<Array>> {
        let mut data =
            types.iter().map(|ty| Aligned::new(ty.bytes())).collect::<Result<Vec<Aligned<u8>>>>()?;
        let mut bytes: Vec<&mut [u8]> = data.iter_mut().map(|data| &mut data[..]).collect();
        fill(&mut bytes)?;
        let array = |(ty, data): (&Type, Aligned<u8>)| Array {
            ty: ty.clone(),
            layout: packed(&ty.shape),
            data: Arc::new(Data::Host(data)),
        };
        Ok(types.iter().zip(data).map(array).collect())
    }

    /// Packed arrays of the given types that lie in device memory.
    pub(crate) fn on_device(types: &[Type], memory: Vec<DeviceMemory>) -> Vec<Array> {
        let array = |(ty, memory): (&Type, DeviceMemory)| Array {
            ty: ty.clone(),
            layout: packed(&ty.shape),
            data: Arc::new(Data::Device(memory)),
        };
        types.iter().zip(memory).map(array).collect()
    }

    /// Where its elements are.
    pub fn device(&self) -> Device {
        match &*self.data {
            Data::Host(_) => Device::Cpu,
            Data::Device(memory) => Device::Cuda(memory.device().number),
        }
    }

    /// The same array on a device: itself where it is there already, else a copy. A copy to a GPU is not waited for,
    /// a copy from one is.
    ///
    /// ```
    /// use tilewright::{Array, Device};
    ///
    /// let x = Array::scalar(1.5f32);
    /// assert_eq!(x.to_device(Device::Cpu)?.item::<f32>()?, 1.5);
    /// if !Device::Cuda(0).is_available() {
    ///     assert_eq!(x.to_device(Device::Cuda(0)).unwrap_err().code(), "device_unavailable");
    /// }
    /// # Ok::<(), tilewright::Error>(())
    /// ```
    ///
    /// # Errors
    /// `DeviceUnavailable`, `OutOfMemory`; from a GPU those of [`Device::synchronize`].
    pub fn to_device(&self, device: Device) -> Result<Array> {
        if self.device() == device {
            return Ok(self.clone());
        }
        let host = match &*self.data {
            Data::Host(_) => self.clone(),
            Data::Device(memory) => {
                let mut bytes = Aligned::new(memory.bytes())?;
                memory.read(&mut bytes)?;
                Array { data: Arc::new(Data::Host(bytes)), ..self.clone() }
            }
        };
        let Some(gpu) = device.gpu()? else { return Ok(host) };
        // What lies between the elements, and elements that repeat, are copied as they are: the layout stays.
        let memory = DeviceMemory::of(&gpu, host.storage()?)?;
        Ok(Array { data: Arc::new(Data::Device(memory)), ..host })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.ty.dtype
    }

    /// The extent of each axis, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.ty.shape
    }

    /// Element type and shape.
    pub fn ty(&self) -> &Type {
        &self.ty
    }

    /// Where its elements are among [`Array::storage`].
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The bytes that its layout is about, of an array in the host's memory.
    pub(crate) fn storage(&self) -> Result<&[u8]> {
        match &*self.data {
            Data::Host(bytes) => Ok(bytes),
            Data::Device(_) => Err(Error::argument("array", format!("on {}, not in memory", self.device()))),
        }
    }

    /// The memory that its layout is about, of an array on a GPU.
    pub(crate) fn memory(&self) -> Option<&DeviceMemory> {
        match &*self.data {
            Data::Host(_) => None,
            Data::Device(memory) => Some(memory),
        }
    }

    /// Whether its elements lie in row-major order without gaps.
    fn is_packed(&self) -> bool {
        let bytes = match &*self.data {
            Data::Host(bytes) => bytes.len(),
            Data::Device(memory) => memory.bytes(),
        };
        self.layout == packed(&self.ty.shape) && bytes == self.ty.bytes()
    }

    /// [`Array::to_packed`], in the host's memory.
    fn to_host(&self) -> Result<Array> {
        self.to_device(Device::Cpu)?.to_packed()
    }

    /// Its bytes in row-major order, in the byte order of the machine.
    ///
    /// # Errors
    /// `OutOfMemory`; from a GPU those of [`Device::synchronize`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        Ok(self.to_host()?.storage()?.to_vec())
    }

    /// Its elements in row-major order.
    ///
    /// # Errors
    /// `DType` where `T` is not its element type; `OutOfMemory`; from a GPU those of [`Device::synchronize`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if T::DTYPE != self.ty.dtype {
            return Err(Error::dtype("to_vec", self.ty.dtype, T::DTYPE));
        }
        Ok(T::read(self.to_host()?.storage()?))
    }

    /// The only element of an array of one.
    ///
    /// # Errors
    /// `Shape` where there is not exactly one element; `DType` as [`Array::to_vec`].
    pub fn item<T: Element>(&self) -> Result<T> {
        match self.to_vec::<T>()?[..] {
            [element] => Ok(element),
            _ => Err(Error::shape("item", "an array of one element", format!("{:?}", self.ty.shape))),
        }
    }

    /// The same array with its elements in row-major order without gaps.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn to_packed(&self) -> Result<Array> {
        if self.is_packed() {
            return Ok(self.clone());
        }
        if self.memory().is_some() {
            return crate::compile(|x: crate::Tensor| x).call(self);
        }
        let (size, source) = (self.ty.dtype.size(), self.storage()?);
        Array::filled(self.ty.clone(), |bytes| {
            let mut places = bytes.chunks_exact_mut(size);
            for_each_element(&self.ty.shape, &self.layout, |place| {
                if let Some(target) = places.next() {
                    target.copy_from_slice(&source[place * size..(place + 1) * size]);
                }
            });
        })
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// `Shape` where the numbers of elements differ; `OutOfMemory`.
    pub fn reshape(&self, shape: impl Into<Vec<usize>>) -> Result<Array> {
        let shape = shape.into();
        if element_count(&shape)? != self.ty.elements() {
            let expected = format!("{} elements", self.ty.elements());
            return Err(Error::shape("shape", expected, format!("{shape:?}")));
        }
        let packed_self = self.to_packed()?;
        let layout = packed(&shape);
        Ok(Array { ty: Type::new(self.ty.dtype, shape), layout, data: packed_self.data })
    }

    /// The axes in another order, without copying: axis i of the result is axis `axes[i]`.
    ///
    /// # Errors
    /// `Shape` where `axes` does not name each axis once.
    pub fn permute(&self, axes: &[usize]) -> Result<Array> {
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..self.ty.rank()) {
            let expected = format!("each of {} axes once", self.ty.rank());
            return Err(Error::shape("axes", expected, format!("{axes:?}")));
        }
        let shape: Vec<usize> = axes.iter().map(|&axis| self.ty.shape[axis]).collect();
        let strides = axes.iter().map(|&axis| self.layout.strides[axis]).collect();
        let layout = Layout { strides, offset: self.layout.offset };
        Ok(Array { ty: Type::new(self.ty.dtype, shape), layout, data: self.data.clone() })
    }

    /// All axes in reverse order, without copying.
    pub fn transpose(&self) -> Array {
        let axes: Vec<usize> = (0..self.ty.rank()).rev().collect();
        self.permute(&axes).expect("the reverse names each axis once")
    }

    /// An axis read from its end to its beginning, without copying.
    ///
    /// # Errors
    /// `Shape` for an axis that it does not have.
    pub fn flip(&self, axis: usize) -> Result<Array> {
        let mut flipped = self.clone();
        let Some(&extent) = self.ty.shape.get(axis) else {
            return Err(Error::shape("axis", format!("below {}", self.ty.rank()), axis));
        };
        flipped.layout.offset += self.layout.strides[axis] * extent.saturating_sub(1) as isize;
        flipped.layout.strides[axis] = -self.layout.strides[axis];
        Ok(flipped)
    }

    /// Repeated to `shape` without copying: axes of extent 1 and missing leading axes are repeated.
    ///
    /// # Errors
    /// `Shape` where an extent is neither 1 nor that of `shape`.
    pub fn broadcast_to(&self, shape: impl Into<Vec<usize>>) -> Result<Array> {
        let shape = shape.into();
        element_count(&shape)?;
        let Some(new) = shape.len().checked_sub(self.ty.rank()) else {
            return Err(Error::shape(
                "shape",
                format!("at least {} axes", self.ty.rank()),
                format!("{shape:?}"),
            ));
        };
        let mut strides = vec![0; shape.len()];
        for (axis, &extent) in self.ty.shape.iter().enumerate() {
            if extent == shape[new + axis] {
                strides[new + axis] = self.layout.strides[axis];
            } else if extent != 1 {
                return Err(Error::axis("array", axis, format!("1 or {}", shape[new + axis]), extent));
            }
        }
        let layout = Layout { strides, offset: self.layout.offset };
        Ok(Array { ty: Type::new(self.ty.dtype, shape), layout, data: self.data.clone() })
    }

    /// The positions `range` of an axis, without copying.
    ///
    /// # Errors
    /// `Shape` for an axis or positions that it does not have.
    pub fn slice(&self, axis: usize, range: std::ops::Range<usize>) -> Result<Array> {
        let Some(&extent) = self.ty.shape.get(axis) else {
            return Err(Error::shape("axis", format!("below {}", self.ty.rank()), axis));
        };
        if range.start > range.end || range.end > extent {
            return Err(Error::axis("range", axis, format!("positions up to {extent}"), range.end));
        }
        let mut sliced = self.clone();
        sliced.layout.offset += self.layout.strides[axis] * range.start as isize;
        sliced.ty.shape[axis] = range.len();
        Ok(sliced)
    }
}

/// Type and first elements; of an array on a GPU, the type and which.
impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.ty.dtype.size();
        let mut shown = Vec::new();
        if self.ty.elements() <= 16
            && let Ok(source) = self.storage()
        {
            for_each_element(&self.ty.shape, &self.layout, |place| {
                let bytes = &source[place * size..(place + 1) * size];
                shown.push(crate::Scalar::from_bytes(self.ty.dtype, bytes).to_string());
            });
            return write!(f, "{} [{}]", self.ty, shown.join(", "));
        }
        match self.device() {
            Device::Cpu => write!(f, "{}", self.ty),
            device => write!(f, "{} on {device}", self.ty),
        }
    }
}

impl Tree<Array> for Array {
    fn visit(&self, path: &mut Path, visitor: &mut Visitor<'_, Array>) {
        visitor(path, Entry::Leaf(self));
    }
}

impl<M: Tree<M>> MapLeaves<Array, M> for Array {
    type Output = M;

    fn map_leaves(&self, path: &mut Path, mapper: &mut Mapper<'_, Array, M>) -> Result<M> {
        mapper(path, self)
    }
}
