//! The file table: every descriptor that operations may name, owned here, by index and generation.
//!
//! A handle of a closed file never reaches the file that got its place. Where the kernel allows it
//! the table is mirrored in the ring's registered file table, at the same indices.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use io_uring::squeue::{Entry, Flags};
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use rustix::termios::isatty;

/// Most files open at once in one queue.
pub const FILES_MAX: usize = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 20;

/// Names a file of one moment: a place in the table, and how often the place had been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle(u64);

impl FileHandle {
    /// From the number that JavaScript keeps; any number is accepted here and checked at use.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The number that JavaScript keeps; below 2^53.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    const fn index(self) -> usize {
        self.0 as usize & (FILES_MAX - 1)
    }

    const fn generation(self) -> u64 {
        self.0 >> INDEX_BITS
    }
}

/// How an SQE names a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// By descriptor.
    Descriptor(RawFd),
    /// By place in the ring's registered file table (`IOSQE_FIXED_FILE`).
    Registered(u32),
}

/// What of a file operations have to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileKind {
    /// None of the others.
    #[default]
    Plain,
    /// Opened O_DIRECT.
    Direct,
    /// A socket, which has no positions: it refuses all but 0 with ESPIPE (`sock_read_iter` in Linux).
    Socket,
    /// A terminal: a write that it does not take whole, or a read of what comes slowly (VMIN of termios(3)),
    /// waits within the enter that submits it, because there is room for some, or some there
    /// (`io_file_supports_nowait` and `n_tty_write` in Linux).
    Terminal,
}

impl FileKind {
    /// Of what is open, with O_DIRECT or without. Asks nobody but the kernel: the server of a file system would
    /// keep this thread waiting, and may be waiting for it.
    #[must_use]
    pub fn of(descriptor: impl AsFd, direct: bool) -> Self {
        if direct {
            return Self::Direct;
        }
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let kind = statx(descriptor.as_fd(), c"", flags, StatxFlags::TYPE)
            .map(|stat| FileType::from_raw_mode(stat.stx_mode.into()));
        match kind {
            Ok(FileType::Socket) => Self::Socket,
            Ok(FileType::CharacterDevice) if isatty(descriptor) => Self::Terminal,
            _ => Self::Plain,
        }
    }

    /// The entry of a transfer that leaves the thread alone that submits it.
    #[inline]
    #[must_use]
    pub(crate) fn apart(self, entry: Entry) -> Entry {
        if self == Self::Terminal { entry.flags(Flags::ASYNC) } else { entry }
    }

    /// Whether it was opened O_DIRECT.
    #[inline]
    #[must_use]
    pub const fn is_direct(self) -> bool {
        matches!(self, Self::Direct)
    }

    /// The position that the kernel is told.
    #[inline]
    #[must_use]
    pub(crate) const fn position(self, position: u64) -> u64 {
        if matches!(self, Self::Socket) { 0 } else { position }
    }
}

/// Why a file could not be used as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFile {
    /// The handle names no open file.
    Unknown,
    /// Operations are in flight on it.
    InFlight,
    /// The descriptor is in the table already.
    Twice,
    /// The table is full.
    Full,
}

struct Place {
    generation: u32,
    descriptor: Option<OwnedFd>,
    kind: FileKind,
    registered: bool,
    in_flight: u32,
}

/// The table.
#[derive(Default)]
pub struct Files {
    entries: Vec<Place>,
    free: Vec<u32>,
    /// Places in the ring's registered table; 0 when there is none.
    registered_places: u32,
}

impl Files {
    /// An empty table, mirrored in a registered table of `registered_places`.
    #[must_use]
    pub fn new(registered_places: u32) -> Self {
        Self { registered_places, ..Self::default() }
    }

    /// Takes a descriptor over. Returns its handle, and its place when the ring should register it.
    ///
    /// # Errors
    /// [`BadFile::Twice`] when the table owns this descriptor already: it would be closed twice.
    /// [`BadFile::Full`] past [`FILES_MAX`]; the descriptor is closed.
    pub fn insert(
        &mut self,
        descriptor: OwnedFd,
        kind: FileKind,
    ) -> Result<(FileHandle, Option<u32>), BadFile> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.entries.len() < FILES_MAX => {
                self.entries.push(Place {
                    generation: 0,
                    descriptor: None,
                    kind: FileKind::Plain,
                    registered: false,
                    in_flight: 0,
                });
                (self.entries.len() - 1) as u32
            }
            None => return Err(BadFile::Full),
        };
        let entry = &mut self.entries[index as usize];
        // Never 0: the first place's handle would be 0 then, which says that there is no file.
        entry.generation = entry.generation.wrapping_add(1).max(1);
        entry.descriptor = Some(descriptor);
        entry.kind = kind;
        entry.registered = false;
        let handle = FileHandle(u64::from(entry.generation) << INDEX_BITS | u64::from(index));
        Ok((handle, (index < self.registered_places).then_some(index)))
    }

    /// Whether the table owns this descriptor.
    #[must_use]
    pub fn owns(&self, fd: RawFd) -> bool {
        self.entries.iter().any(|e| e.descriptor.as_ref().is_some_and(|d| d.as_raw_fd() == fd))
    }

    /// Notes that the ring has registered the file, or not any more.
    pub fn set_registered(&mut self, handle: FileHandle, registered: bool) {
        if let Ok(entry) = self.find(handle) {
            entry.registered = registered;
        }
    }

    #[inline]
    fn find(&mut self, handle: FileHandle) -> Result<&mut Place, BadFile> {
        match self.entries.get_mut(handle.index()) {
            Some(entry)
                if entry.descriptor.is_some()
                    && u64::from(entry.generation) == handle.generation() =>
            {
                Ok(entry)
            }
            _ => Err(BadFile::Unknown),
        }
    }

    /// Holds a file for an operation. Returns how to name it, and its kind.
    ///
    /// # Errors
    /// [`BadFile::Unknown`].
    #[inline]
    pub fn hold(&mut self, handle: FileHandle) -> Result<(Target, FileKind), BadFile> {
        let entry = self.find(handle)?;
        entry.in_flight += 1;
        let target = match &entry.descriptor {
            _ if entry.registered => Target::Registered(handle.index() as u32),
            Some(descriptor) => Target::Descriptor(descriptor.as_raw_fd()),
            None => unreachable!("found entries are open"),
        };
        Ok((target, entry.kind))
    }

    /// Whether the handle names an open file that was opened O_DIRECT.
    #[inline]
    pub fn is_direct(&mut self, handle: FileHandle) -> bool {
        self.find(handle).is_ok_and(|entry| entry.kind.is_direct())
    }

    /// Lets go of an operation's hold.
    ///
    /// # Panics
    /// Without a hold: then somebody else's would be let go.
    #[inline]
    pub fn unhold(&mut self, handle: FileHandle) {
        let Ok(entry) = self.find(handle) else {
            unreachable!("a held file stays in the table");
        };
        assert!(entry.in_flight > 0, "unhold follows hold");
        entry.in_flight -= 1;
    }

    /// The descriptor's number.
    ///
    /// # Errors
    /// [`BadFile::Unknown`].
    pub fn descriptor(&mut self, handle: FileHandle) -> Result<RawFd, BadFile> {
        self.find(handle).map(|entry| entry.descriptor.as_ref().map_or(-1, AsRawFd::as_raw_fd))
    }

    /// Takes a file out of the table. Returns its descriptor, and its place when the ring has to
    /// unregister it.
    ///
    /// # Errors
    /// [`BadFile::Unknown`]; [`BadFile::InFlight`] while operations are in flight on it.
    pub fn remove(&mut self, handle: FileHandle) -> Result<(OwnedFd, Option<u32>), BadFile> {
        let entry = self.find(handle)?;
        if entry.in_flight > 0 {
            return Err(BadFile::InFlight);
        }
        let place = entry.registered.then_some(handle.index() as u32);
        entry.registered = false;
        let Some(descriptor) = entry.descriptor.take() else {
            unreachable!("found entries are open");
        };
        self.free.push(handle.index() as u32);
        Ok((descriptor, place))
    }

    /// Keeps the descriptors that operations hold for ever. A link that has not started names its file by
    /// number, which the kernel looks up when it starts (`io_assign_file` in Linux): closed, the number may be
    /// somebody else's file by then.
    pub fn leak(&mut self) {
        for entry in self.entries.iter_mut().filter(|entry| entry.in_flight > 0) {
            std::mem::forget(entry.descriptor.take());
        }
    }

    /// Open files.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether no file is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("/dev/null").into()
    }

    #[test]
    fn a_handle_of_a_closed_file_never_names_the_next_one() {
        let mut files = Files::new(0);
        let (first, _) = files.insert(null(), FileKind::Plain).expect("room");
        files.remove(first).expect("open");
        let (second, _) = files.insert(null(), FileKind::Plain).expect("room");
        assert_eq!(first.index(), second.index(), "the place is reused");
        assert_eq!(files.hold(first).unwrap_err(), BadFile::Unknown);
        assert!(files.hold(second).is_ok());
    }

    #[test]
    fn a_file_with_operations_in_flight_is_not_removed() {
        let mut files = Files::new(0);
        let (handle, _) = files.insert(null(), FileKind::Plain).expect("room");
        files.hold(handle).expect("open");
        assert_eq!(files.remove(handle).unwrap_err(), BadFile::InFlight);
        files.unhold(handle);
        assert!(files.remove(handle).is_ok());
        assert!(files.is_empty());
    }

    #[test]
    fn files_past_the_registered_table_are_named_by_descriptor() {
        let mut files = Files::new(1);
        let (first, place) = files.insert(null(), FileKind::Plain).expect("room");
        assert_eq!(place, Some(0));
        files.set_registered(first, true);
        assert_eq!(files.hold(first), Ok((Target::Registered(0), FileKind::Plain)));
        let (second, place) = files.insert(null(), FileKind::Direct).expect("room");
        assert_eq!(place, None);
        let fd = files.descriptor(second).expect("open");
        assert_eq!(files.hold(second), Ok((Target::Descriptor(fd), FileKind::Direct)));
    }

    #[test]
    fn a_descriptor_in_the_table_is_known_to_be_owned() {
        let mut files = Files::new(0);
        let (handle, _) = files.insert(null(), FileKind::Plain).expect("room");
        let fd = files.descriptor(handle).expect("open");
        assert!(files.owns(fd));
        drop(files.remove(handle).expect("open"));
        assert!(!files.owns(fd));
    }

    proptest! {
        #[test]
        fn any_number_used_as_a_handle_is_refused_or_names_an_open_file(numbers in proptest::collection::vec(any::<u64>(), 64)) {
            let mut files = Files::new(0);
            let (handle, _) = files.insert(null(), FileKind::Plain).expect("room");
            for number in numbers {
                let guess = FileHandle::from_number(number);
                if guess != handle {
                    prop_assert_eq!(files.hold(guess).unwrap_err(), BadFile::Unknown);
                }
            }
        }
    }
}
