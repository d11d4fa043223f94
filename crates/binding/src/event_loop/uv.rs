//! The libuv functions that we call, found in the running process.
//!
//! Node exports them; other runtimes may not, and then the table is not made and the caller is told.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem;

/// `uv_handle_t` and its kin start with `void* data`. The rest is libuv's.
#[repr(C)]
pub struct Handle {
    pub data: *mut c_void,
    rest: [u8; 0],
}

pub type Loop = c_void;
pub type Callback = extern "C" fn(*mut Handle);
pub type PollCallback = extern "C" fn(*mut Handle, c_int, c_int);

/// `UV_READABLE` of `uv_poll_event`.
pub const READABLE: c_int = 1;

/// `uv_handle_type`: stable numbers of libuv 1.x, `uv.h`.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Kind {
    Idle = 6,
    Poll = 8,
    Prepare = 9,
    Timer = 13,
}

macro_rules! table {
    ($($name:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?,)*) => {
        /// The functions.
        #[derive(Clone, Copy)]
        pub struct Uv {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Uv {
            /// Looks every function up; `None` when the process lacks one.
            pub fn find() -> Option<Self> {
                Some(Self {
                    $($name: {
                        let found = symbol($symbol)?;
                        // SAFETY: the symbol of this name has this signature in every libuv 1.x
                        // (`uv.h`; the ABI is stable within a major version).
                        unsafe { mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(found) }
                    },)*
                })
            }
        }
    };
}

table! {
    handle_size = c"uv_handle_size": fn(c_uint) -> usize,
    prepare_init = c"uv_prepare_init": fn(*mut Loop, *mut Handle) -> c_int,
    prepare_start = c"uv_prepare_start": fn(*mut Handle, Callback) -> c_int,
    idle_init = c"uv_idle_init": fn(*mut Loop, *mut Handle) -> c_int,
    idle_start = c"uv_idle_start": fn(*mut Handle, Callback) -> c_int,
    idle_stop = c"uv_idle_stop": fn(*mut Handle) -> c_int,
    timer_init = c"uv_timer_init": fn(*mut Loop, *mut Handle) -> c_int,
    timer_start = c"uv_timer_start": fn(*mut Handle, Callback, u64, u64) -> c_int,
    poll_init = c"uv_poll_init": fn(*mut Loop, *mut Handle, c_int) -> c_int,
    poll_start = c"uv_poll_start": fn(*mut Handle, c_int, PollCallback) -> c_int,
    reference = c"uv_ref": fn(*mut Handle),
    unref = c"uv_unref": fn(*mut Handle),
    close = c"uv_close": fn(*mut Handle, Callback),
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
    let name: *const c_char = name.as_ptr();
    // SAFETY: `name` ends with NUL; RTLD_DEFAULT searches what is loaded and changes nothing.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name) };
    (!found.is_null()).then_some(found)
}
