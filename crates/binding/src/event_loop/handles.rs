//! The usual driver: handles of libuv. Prepare (the loop is about to block) and poll (the eventfd
//! fired) take a turn; an idle handle keeps the loop from sleeping, a timer wakes it.
//!
//! Owns the handles until libuv has closed them.

use std::cell::Cell;
use std::ffi::c_int;
use std::rc::Rc;

use napi::sys;

use super::uv::{self, Handle, Kind, Uv};
use super::{NoLoop, Shared, check};

/// The handles of one queue.
pub struct Handles {
    uv: Uv,
    prepare: *mut Handle,
    poll: *mut Handle,
    idle: *mut Handle,
    timer: *mut Handle,
    open: Cell<u32>,
}

impl Handles {
    /// Memory for them.
    pub fn new(uv: Uv) -> Self {
        Self {
            prepare: new_handle(&uv, Kind::Prepare),
            poll: new_handle(&uv, Kind::Poll),
            idle: new_handle(&uv, Kind::Idle),
            timer: new_handle(&uv, Kind::Timer),
            uv,
            open: Cell::new(0),
        }
    }

    const fn all(&self) -> [*mut Handle; 4] {
        [self.prepare, self.poll, self.idle, self.timer]
    }

    /// Starts them, all unreferenced. Where that fails their memory is gone.
    pub fn join(&self, shared: &Rc<Shared>, descriptor: c_int) -> Result<(), NoLoop> {
        let started = self.start(shared, descriptor);
        if started.is_err() {
            for handle in self.all() {
                // SAFETY: made by `new_handle`; libuv has taken none of them, and nobody uses them any more.
                unsafe { libc::free(handle.cast()) };
            }
        }
        started
    }

    fn start(&self, shared: &Rc<Shared>, descriptor: c_int) -> Result<(), NoLoop> {
        let uv = &self.uv;
        let mut uv_loop = std::ptr::null_mut();
        // SAFETY: the out-pointer outlives the call.
        if !check(unsafe { sys::napi_get_uv_event_loop(shared.env, &raw mut uv_loop) }) {
            return Err(NoLoop::NAPI);
        }
        let uv_loop: *mut uv::Loop = uv_loop.cast();
        // SAFETY: the loop is this thread's and alive; each handle is memory of libuv's own size for
        // its kind, freed only by `on_closed`, after libuv has let it go. `data` is the first field.
        unsafe {
            // The only one that can fail: ENOMEM and ENOSPC of epoll_ctl(2).
            let refused = (uv.poll_init)(uv_loop, self.poll, descriptor);
            if refused != 0 {
                return Err(NoLoop(-refused));
            }
            (uv.prepare_init)(uv_loop, self.prepare);
            (uv.idle_init)(uv_loop, self.idle);
            (uv.timer_init)(uv_loop, self.timer);
            for handle in self.all() {
                // One strong count for each handle, given back in `on_closed`.
                (*handle).data = Rc::into_raw(Rc::clone(shared)).cast_mut().cast();
                (uv.unref)(handle);
            }
            self.open.set(4);
            (uv.prepare_start)(self.prepare, on_prepare);
            (uv.poll_start)(self.poll, uv::READABLE, on_poll);
        }
        Ok(())
    }

    pub fn set_referenced(&self, referenced: bool) {
        // SAFETY: the poll handle is open: callers look whether it is being closed.
        unsafe {
            if referenced { (self.uv.reference)(self.poll) } else { (self.uv.unref)(self.poll) }
        }
    }

    pub fn set_idling(&self, idling: bool) {
        // SAFETY: the idle handle is open. An active idle handle keeps the loop from sleeping, even
        // when it is unreferenced; its callback does nothing.
        unsafe {
            if idling {
                (self.uv.idle_start)(self.idle, on_nothing);
            } else {
                (self.uv.idle_stop)(self.idle);
            }
        }
    }

    pub fn wake_after(&self, after_ms: u32) {
        // SAFETY: the timer handle is open. It only wakes the loop: prepare takes the turn.
        unsafe {
            (self.uv.timer_start)(self.timer, on_nothing, u64::from(after_ms), 0);
        }
    }

    /// Gives them back to libuv; called once.
    pub fn close(&self) {
        for handle in self.all() {
            // SAFETY: the handle is open and closed only here.
            unsafe { (self.uv.close)(handle, on_closed) };
        }
    }
}

/// Memory for a libuv handle, zeroed, aligned for any of its fields.
fn new_handle(uv: &Uv, kind: Kind) -> *mut Handle {
    // SAFETY: a pure look-up.
    let bytes = unsafe { (uv.handle_size)(kind as u32) };
    // SAFETY: calloc takes no pointer; what it returns is freed by `on_closed` alone.
    let memory = unsafe { libc::calloc(1, bytes) };
    assert!(!memory.is_null(), "out of memory");
    memory.cast()
}

/// The [`Shared`] of a handle, for the length of a callback.
///
/// # Safety
/// `handle` is one of ours and not closed: it carries a strong count.
unsafe fn shared_of(handle: *mut Handle) -> Rc<Shared> {
    // SAFETY: `data` came from `Rc::into_raw`; the count is raised so that this clone is its own.
    unsafe {
        let data: *const Shared = (*handle).data.cast_const().cast();
        Rc::increment_strong_count(data);
        Rc::from_raw(data)
    }
}

extern "C" fn on_nothing(_: *mut Handle) {}

extern "C" fn on_prepare(handle: *mut Handle) {
    // SAFETY: libuv passes the handle that the callback was started with.
    unsafe { shared_of(handle) }.pump();
}

extern "C" fn on_poll(handle: *mut Handle, _status: c_int, _events: c_int) {
    // SAFETY: as `on_prepare`.
    let shared = unsafe { shared_of(handle) };
    if let Some(engine) = shared.engine.borrow_mut().as_mut() {
        engine.woken();
    }
    shared.pump();
}

extern "C" fn on_closed(handle: *mut Handle) {
    // SAFETY: libuv has let the handle go: its strong count is taken back, its memory freed.
    let shared = unsafe {
        let shared = Rc::from_raw((*handle).data.cast_const().cast::<Shared>());
        libc::free(handle.cast());
        shared
    };
    let super::Driver::Handles(handles) = &shared.driver else { return };
    handles.open.set(handles.open.get() - 1);
    if handles.open.get() == 0 {
        shared.closed();
    }
}
