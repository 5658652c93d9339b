//! Reductions and running sums.

use tilewright_ir::{DType, Error, Op, Reduction, Type};

use crate::Tensor;
use crate::arguments::Axes;
use crate::recording::{poison, record};

/// The shape with the named axes at extent 1.
fn kept(shape: &[usize], axes: &[usize]) -> Vec<usize> {
    shape.iter().enumerate().map(|(axis, &extent)| if axes.contains(&axis) { 1 } else { extent }).collect()
}

impl Tensor {
    #[track_caller]
    fn reduce(self, kind: Reduction, axes: impl Axes, keep: bool) -> Tensor {
        let ty = self.ty();
        let name = format!("reduce_{}", kind.name());
        let mut axes = check!(name, ty, axes.resolve(ty.rank()));
        axes.sort_unstable();
        let shape = kept(&ty.shape, &axes);
        let reduced = record(Op::Reduce { kind, axes }, &[self]);
        if keep { reduced.reshape(shape) } else { reduced }
    }

    /// The number of elements that a reduction over `axes` combines into one.
    fn reduced_elements(self, axes: &impl Axes) -> usize {
        let shape = self.shape();
        axes.resolve(shape.len()).map_or(1, |axes| axes.iter().map(|&axis| shape[axis]).product())
    }
}

macro_rules! reductions {
    ($($(#[$doc:meta])* $method:ident $keep:ident $kind:ident),* $(,)?) => {
        impl Tensor {$(
            $(#[$doc])*
            #[track_caller]
            pub fn $method(&self, axes: impl Axes) -> Tensor {
                self.reduce(Reduction::$kind, axes, false)
            }

            #[doc = concat!("[`Tensor::", stringify!($method), "`] with the axes kept at extent 1.")]
            #[track_caller]
            pub fn $keep(&self, axes: impl Axes) -> Tensor {
                self.reduce(Reduction::$kind, axes, true)
            }
        )*}
    };
}

reductions! {
    /// Sum over the named axes (`..`: all), of numbers. Narrow floats accumulate in `f32`.
    sum sum_keep Sum,
    /// Product over the named axes, of numbers.
    prod prod_keep Prod,
    /// Greatest over the named axes; NaN if any is.
    max max_keep Max,
    /// Least over the named axes; NaN if any is.
    min min_keep Min,
}

impl Tensor {
    /// Mean over the named axes, of floats.
    #[track_caller]
    pub fn mean(&self, axes: impl Axes) -> Tensor {
        let count = self.reduced_elements(&axes);
        self.sum(axes) / count as f64
    }

    /// [`Tensor::mean`] with the axes kept at extent 1.
    #[track_caller]
    pub fn mean_keep(&self, axes: impl Axes) -> Tensor {
        let count = self.reduced_elements(&axes);
        self.sum_keep(axes) / count as f64
    }

    /// Variance over the named axes (the mean square distance from the mean), of floats.
    #[track_caller]
    pub fn var(&self, axes: impl Axes) -> Tensor {
        (self - self.mean_keep(&axes)).square().mean(axes)
    }

    /// [`Tensor::var`] with the axes kept at extent 1.
    #[track_caller]
    pub fn var_keep(&self, axes: impl Axes) -> Tensor {
        (self - self.mean_keep(&axes)).square().mean_keep(axes)
    }

    /// Whether any element along the named axes holds, of `bool`.
    #[track_caller]
    pub fn any(&self, axes: impl Axes) -> Tensor {
        self.truth("any").reduce(Reduction::Max, axes, false)
    }

    /// Whether every element along the named axes holds, of `bool`.
    #[track_caller]
    pub fn all(&self, axes: impl Axes) -> Tensor {
        self.truth("all").reduce(Reduction::Min, axes, false)
    }

    #[track_caller]
    fn truth(self, operation: &str) -> Tensor {
        if self.dtype() == DType::Bool {
            return self;
        }
        let error = Error::dtype("operand", DType::Bool, self.dtype()).in_operation(operation);
        poison(error, Type::new(DType::Bool, self.shape()))
    }

    /// Position of the first greatest element along an axis, `i64`.
    #[track_caller]
    pub fn argmax(&self, axis: isize) -> Tensor {
        let axis = check!("argmax", self.ty(), self.axis(axis));
        record(Op::ArgMax { axis }, &[*self])
    }

    /// Position of the first least element along an axis, `i64`.
    #[track_caller]
    pub fn argmin(&self, axis: isize) -> Tensor {
        // Unsigned and least integers have no negative: compare from the other end of their range.
        if self.dtype().is_integer() { (!*self).argmax(axis) } else { (-*self).argmax(axis) }
    }

    /// log Σ eˣ over the named axes, of floats; −∞ where every element is.
    #[track_caller]
    pub fn log_sum_exp(&self, axes: impl Axes) -> Tensor {
        let ty = self.ty();
        let mut resolved = check!("log_sum_exp", ty, axes.resolve(ty.rank()));
        resolved.sort_unstable();
        let shape: Vec<usize> =
            (0..ty.rank()).filter(|axis| !resolved.contains(axis)).map(|axis| ty.shape[axis]).collect();
        self.by_single(|x| {
            let shifted_by = x.max_keep(&resolved).finite_or_zero().stop_gradient();
            let sum = (x - shifted_by).exp().sum(&resolved);
            sum.log() + shifted_by.reshape(shape)
        })
    }

    /// Zero where the element is an infinity.
    #[track_caller]
    fn finite_or_zero(self) -> Tensor {
        self.abs().eq(f64::INFINITY).select(0.0, self)
    }

    /// eˣ / Σ eˣ along an axis, of floats.
    #[track_caller]
    pub fn softmax(&self, axis: isize) -> Tensor {
        let axis = check!("softmax", self.ty(), self.axis(axis));
        self.by_single(|x| {
            let exponentials = (x - x.max_keep(axis).stop_gradient()).exp();
            exponentials / exponentials.sum_keep(axis)
        })
    }

    /// The logarithm of [`Tensor::softmax`], exact where that would round to 0.
    #[track_caller]
    pub fn log_softmax(&self, axis: isize) -> Tensor {
        let axis = check!("log_softmax", self.ty(), self.axis(axis));
        self.by_single(|x| {
            let shifted = x - x.max_keep(axis).stop_gradient();
            shifted - shifted.exp().sum_keep(axis).log()
        })
    }
}
