//! ArrayBuffers over arena memory: what keeps the memory mapped for as long as any thread can reach
//! it.
//!
//! Node finalizes an external buffer when its memory is freed, and also when the environment ends,
//! even if the memory lives on: `ArrayBuffer.prototype.transfer` (Node 22) makes a buffer that can be
//! posted to another thread, and so does a byte stream (`ReadableStream`, also of Node 20). So when
//! Node finalizes the first buffer at the end of an environment we look at all the others, which it
//! has not touched yet: one that is detached or gone, and was not given back, was moved, and its
//! memory is kept mapped for ever. Of the first we cannot know, and
//! Node begins with the newest: so after each turn in which something was exposed, the newest is made
//! one that nobody has. (When a thread is ended within such a turn, the memory of the first is kept,
//! too.)

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::rc::{Rc, Weak};

use napi::sys;
use node_uring_core::arena::Address;
use node_uring_core::{ChunkId, Mapping};

use crate::event_loop::{Scope, Shared, check};

/// What a buffer over arena memory refers to.
struct Exposed {
    address: usize,
    number: u64,
    chunk: ChunkId,
    /// The chunk's engine, for as long as it is there.
    shared: Weak<Shared>,
}

struct Live {
    env: sys::napi_env,
    /// Tells it from an earlier buffer at the same address, which may be finalized later.
    number: u64,
    /// Weak: does not keep the buffer alive.
    buffer: sys::napi_ref,
    /// Keeps the memory mapped when the engine is gone.
    mapping: Rc<Mapping>,
}

#[derive(Default)]
struct Registry {
    next: u64,
    /// By the address of their first byte.
    live: HashMap<usize, Live>,
    /// Whether the environment has begun to end, and moved buffers were seen to.
    ending: bool,
    /// The buffer that nobody has, and whether it is the newest.
    guard: Option<Guard>,
    guarded: bool,
}

/// A buffer over a byte of its own, made for being finalized first.
struct Guard {
    buffer: sys::napi_ref,
}

thread_local! {
    /// Every buffer of this thread that was neither given back nor finalized.
    static REGISTRY: RefCell<Registry> = RefCell::default();
}

/// Makes an `ArrayBuffer` over a chunk's memory, which owns the chunk: it is free when the buffer is
/// finalized (or was given back before). `None` where the runtime does not allow external buffers.
///
/// # Safety
/// `env` is the current environment, and `mapping` is the one that `address` is in.
pub unsafe fn expose(
    env: sys::napi_env,
    chunk: ChunkId,
    address: Address,
    mapping: Rc<Mapping>,
    shared: Weak<Shared>,
) -> Option<sys::napi_value> {
    let number = REGISTRY.with_borrow_mut(|registry| {
        registry.next += 1;
        registry.guarded = false;
        registry.next
    });
    let start = address.as_ptr() as usize;
    let hint = Box::into_raw(Box::new(Exposed { address: start, number, chunk, shared }));
    let (mut buffer, mut reference) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: `address` stays mapped: the registry keeps the mapping until `finalized`, which frees
    // `hint` once, on this thread. Out-pointers are locals.
    unsafe {
        let made = sys::napi_create_external_arraybuffer(
            env,
            address.as_ptr().cast(),
            address.len(),
            Some(finalized),
            hint.cast(),
            &raw mut buffer,
        );
        if !check(made) {
            // What V8 refuses Node has finalized (`node::Buffer::New`); refused before, it is still ours.
            if made != sys::Status::napi_generic_failure {
                drop(Box::from_raw(hint));
            }
            return None;
        }
        sys::napi_create_reference(env, buffer, 0, &raw mut reference);
    }
    let live = Live { env, number, buffer: reference, mapping };
    REGISTRY.with_borrow_mut(|registry| registry.live.insert(start, live));
    Some(buffer)
}

/// A buffer's memory was freed, or its environment ends.
unsafe extern "C" fn finalized(env: sys::napi_env, _: *mut c_void, hint: *mut c_void) {
    // SAFETY: the hint of `expose`, passed once.
    let exposed = unsafe { Box::from_raw(hint.cast::<Exposed>()) };
    if !REGISTRY.with_borrow(|registry| registry.ending) && is_ending(env) {
        keep_moved(env, Some(exposed.number));
    }
    let live = REGISTRY.with_borrow_mut(|registry| {
        let is_this = registry.live.get(&exposed.address)?.number == exposed.number;
        is_this.then(|| registry.live.remove(&exposed.address)).flatten()
    });
    forget(env, live);
    if let Some(shared) = exposed.shared.upgrade()
        && let Some(engine) = shared.engine.borrow_mut().as_mut()
    {
        // Unknown when `free` gave it back before.
        let _ = engine.arena().disown(exposed.chunk);
    }
}

/// The buffer at this address was given back and detached: its memory is the arena's alone again.
pub fn given_back(env: sys::napi_env, address: Address) {
    let start = address.as_ptr() as usize;
    forget(env, REGISTRY.with_borrow_mut(|registry| registry.live.remove(&start)));
}

fn forget(env: sys::napi_env, live: Option<Live>) {
    if let Some(live) = live {
        // SAFETY: made by `expose`, and taken out of the registry: deleted once. (A null one, where
        // making it failed, is refused.)
        unsafe { sys::napi_delete_reference(env, live.buffer) };
    }
}

/// The turn is over. If something was exposed in it, makes the newest buffer one that nobody has.
pub fn end_turn(env: sys::napi_env) {
    let before = REGISTRY.with_borrow_mut(|registry| {
        if registry.guarded || registry.next == 0 || registry.ending {
            return None;
        }
        registry.guarded = true;
        Some(registry.guard.take())
    });
    let Some(before) = before else { return };
    let Some(_scope) = Scope::open(env) else { return };
    let guard = make_guard(env);
    if let Some(Guard { buffer }) = before {
        // SAFETY: made by `make_guard` and deleted once.
        unsafe { sys::napi_delete_reference(env, buffer) };
    }
    REGISTRY.with_borrow_mut(|registry| registry.guard = guard);
}

fn make_guard(env: sys::napi_env) -> Option<Guard> {
    let byte = Box::into_raw(Box::new(0_u8));
    let (mut value, mut buffer) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: `byte` is freed by `guard_finalized`, once, when the buffer is gone; a handle scope is
    // open; out-pointers are locals. The reference is strong: the buffer stays until it is replaced.
    unsafe {
        let made = sys::napi_create_external_arraybuffer(
            env,
            byte.cast(),
            1,
            Some(guard_finalized),
            ptr::null_mut(),
            &raw mut value,
        );
        if !check(made) {
            drop(Box::from_raw(byte));
            return None;
        }
        let kept = sys::napi_create_reference(env, value, 1, &raw mut buffer);
        check(kept).then_some(Guard { buffer })
    }
}

/// A guard was replaced and collected, or its environment ends: then none of the others has been
/// touched.
unsafe extern "C" fn guard_finalized(env: sys::napi_env, byte: *mut c_void, _: *mut c_void) {
    // SAFETY: made by `make_guard`, passed once.
    drop(unsafe { Box::from_raw(byte.cast::<u8>()) });
    if !REGISTRY.with_borrow(|registry| registry.ending) && is_ending(env) {
        keep_moved(env, None);
    }
}

/// The environment ends: keeps the memory of buffers that were moved. `first` is the one that Node
/// finalizes first, if it is one of them: it has detached that one and no other.
fn keep_moved(env: sys::napi_env, first: Option<u64>) {
    let Some(_scope) = Scope::open(env) else { return };
    REGISTRY.with_borrow_mut(|registry| {
        registry.ending = true;
        for live in registry.live.values().filter(|live| live.env == env) {
            // Of the first we cannot know who detached it.
            if Some(live.number) == first || was_moved(live) {
                std::mem::forget(Rc::clone(&live.mapping));
            }
        }
    });
}

/// Whether a buffer that was not given back is detached, or gone though its memory is not.
fn was_moved(live: &Live) -> bool {
    let (mut buffer, mut detached) = (ptr::null_mut(), false);
    // SAFETY: a handle scope is open; the reference is alive (or null, which gives an error status);
    // out-pointers are locals.
    unsafe {
        let found = sys::napi_get_reference_value(live.env, live.buffer, &raw mut buffer);
        if !check(found) || buffer.is_null() {
            return true;
        }
        !check(sys::napi_is_detached_arraybuffer(live.env, buffer, &raw mut detached)) || detached
    }
}

/// Whether the environment ends: it runs no JavaScript any more.
fn is_ending(env: sys::napi_env) -> bool {
    let Some(_scope) = Scope::open(env) else { return true };
    let (mut undefined, mut truth) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: a handle scope is open; out-pointers are locals. Coercing undefined runs nothing, but
    // is refused where nothing may run.
    unsafe {
        sys::napi_get_undefined(env, &raw mut undefined);
        !check(sys::napi_coerce_to_bool(env, undefined, &raw mut truth))
    }
}
