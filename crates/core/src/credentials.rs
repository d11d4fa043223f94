//! As whom the kernel opens files for us. A polling thread goes on as who the process was when the ring
//! was made; everything else opens as who it is now.

use rustix::process::{Gid, Uid, getegid, geteuid, getgroups};

/// Who the process was. Not among it: capabilities, which Node.js changes with the user alone.
#[derive(PartialEq, Eq)]
pub struct Credentials {
    user: Uid,
    group: Gid,
    groups: Vec<Gid>,
}

impl Credentials {
    /// Who the process is now. Three system calls, less than a microsecond.
    pub fn of_now() -> Self {
        Self { user: geteuid(), group: getegid(), groups: getgroups().unwrap_or_default() }
    }

    /// Whether the process is somebody else now. `setresuid(2)`, `setgroups(2)`.
    pub fn have_changed(&self) -> bool {
        *self != Self::of_now()
    }
}
