//! Processor time: what measurements on a machine that others use too are taken by.

use std::time::Duration;

/// The processor time that the calling thread has used, or all threads of the process; `None` where the system
/// has no such clock.
pub fn processor_time(of: Clock) -> Option<Duration> {
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    {
        #[repr(C)]
        struct Time {
            seconds: i64,
            nanoseconds: i64,
        }
        unsafe extern "C" {
            fn clock_gettime(clock: i32, time: *mut Time) -> i32;
        }
        let mut time = Time { seconds: 0, nanoseconds: 0 };
        let clock = match of {
            Clock::Process => 2,
            Clock::Thread => 3,
        };
        // SAFETY: the function of the C library, with a structure of its layout on 64-bit Linux.
        let failed = unsafe { clock_gettime(clock, &mut time) } != 0;
        (!failed).then(|| Duration::new(time.seconds as u64, time.nanoseconds as u32))
    }
    #[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
    {
        let _ = of;
        None
    }
}

/// Whose time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Of all threads of the process.
    Process,
    /// Of the calling thread.
    Thread,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_processor_time_and_sleep_does_not() {
        let Some(start) = processor_time(Clock::Thread) else { return };
        std::thread::sleep(Duration::from_millis(20));
        let slept = processor_time(Clock::Thread).expect("the clock") - start;
        assert!(slept < Duration::from_millis(10), "{slept:?}");
        let mut x = 1.0f64;
        while processor_time(Clock::Thread).expect("the clock") - start < Duration::from_millis(2) {
            x = std::hint::black_box(x * 1.000_001);
        }
        assert!(processor_time(Clock::Process) >= processor_time(Clock::Thread));
    }
}
