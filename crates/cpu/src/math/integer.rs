//! Division of integers, rounding towards −∞; by 0 it gives 0.

macro_rules! division {
    ($integer:ty, $div:ident, $rem:ident) => {
        /// ⌊x / y⌋, and 0 where y is 0.
        #[inline(always)]
        pub(crate) fn $div(x: $integer, y: $integer) -> $integer {
            let divisor = if y == 0 { 1 } else { y };
            let quotient = x.wrapping_div(divisor);
            let down = (x.wrapping_rem(divisor) != 0) & ((x < 0) != (y < 0));
            if y == 0 { 0 } else { quotient - down as $integer }
        }

        /// x − y·⌊x / y⌋, and 0 where y is 0.
        #[inline(always)]
        pub(crate) fn $rem(x: $integer, y: $integer) -> $integer {
            let divisor = if y == 0 { 1 } else { y };
            let remainder = x.wrapping_rem(divisor);
            let other_side = (remainder != 0) & ((remainder < 0) != (y < 0));
            if y == 0 { 0 } else { remainder + if other_side { y } else { 0 } }
        }
    };
}

division!(i32, div_i32, rem_i32);
division!(i64, div_i64, rem_i64);
