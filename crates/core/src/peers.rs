//! The rings of this process that can be posted to: those of our engines, by the number of their
//! descriptor, while they work.
//!
//! A message is a completion in somebody else's queue, whose user_data only our engines understand; libuv
//! has rings as well, and takes user_data for an address. So no ring but ours is ever named to the
//! kernel. What is named is a duplicate, which the operation holds: by the time the kernel looks, the
//! number itself may be another ring's.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ring;

/// By descriptor; with the duplicate that is named to the kernel, once there is one.
type Peers = BTreeMap<RawFd, Option<Arc<OwnedFd>>>;

/// Of all threads. Nobody waits while he has it.
static PEERS: Mutex<Peers> = Mutex::new(BTreeMap::new());

fn peers() -> MutexGuard<'static, Peers> {
    PEERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A ring's place in the list, until it is dropped; that is before its descriptor is closed.
pub(crate) struct Peer(RawFd);

impl Peer {
    /// Puts the ring with this descriptor into the list.
    pub(crate) fn list(descriptor: RawFd) -> Self {
        peers().insert(descriptor, None);
        Self(descriptor)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // What was named to the kernel and is not over keeps the duplicate open.
        peers().remove(&self.0);
    }
}

/// A descriptor of the ring that is listed under this number; `None` where none is.
///
/// # Errors
/// EMFILE when the process has no descriptor left: the first message to a ring takes one.
pub(crate) fn find(descriptor: RawFd) -> io::Result<Option<Arc<OwnedFd>>> {
    let mut peers = peers();
    let Some(known) = peers.get_mut(&descriptor) else { return Ok(None) };
    if let Some(ring) = known {
        return Ok(Some(Arc::clone(ring)));
    }
    // It is listed, and we have the list: its descriptor is open, and its own.
    let ring = Arc::new(ring::duplicate(descriptor)?);
    *known = Some(Arc::clone(&ring));
    Ok(Some(ring))
}
