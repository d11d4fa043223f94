//! A folder of its own, which is the working directory while an input runs, and a count of this
//! process's descriptors. Paths of an input are one name without a slash and never `..`, so that
//! whatever the kernel opens, makes, truncates or writes is in here.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Not 0, so that a stray read of it shows on memory that is still zero.
const CONTENT: u8 = 0xf1;

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// The folder, clean; [`Sandbox::leave`] says what an input left open.
pub struct Sandbox {
    descriptors: usize,
}

impl Sandbox {
    pub fn enter() -> Self {
        let folder = FOLDER.get_or_init(make_folder);
        // Whatever an input made, renamed and removed: they are these two again.
        for entry in std::fs::read_dir(folder).expect("the folder").flatten() {
            let removed = std::fs::remove_file(entry.path());
            removed.or_else(|_| std::fs::remove_dir(entry.path())).expect("removed");
        }
        make_fifo(Path::new("fifo"));
        std::fs::write(folder.join("file"), [CONTENT; 20_000]).expect("a file");
        Self { descriptors: descriptors() }
    }

    /// Opens the one file that inputs read and write, if they left it there.
    pub fn file(&self, direct: bool) -> std::io::Result<File> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let file = File::options().read(true).write(true).custom_flags(flags).open("file")?;
        // A FIFO may have got its name: what reads that does not end.
        if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::ErrorKind::Other.into()) }
    }

    /// A name that stays in the folder, made of any bytes.
    pub fn tame(path: &[u8]) -> Vec<u8> {
        if path == b".." {
            return b".".to_vec();
        }
        path.iter().map(|&byte| if byte == b'/' { b'_' } else { byte }).collect()
    }

    /// After the input.
    pub fn leave(&self) {
        assert_eq!(descriptors(), self.descriptors, "an input left descriptors open");
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count()
}

fn make_folder() -> PathBuf {
    let name = format!("node-uring-fuzz-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).expect("a folder");
    std::env::set_current_dir(&folder).expect("its own folder");
    // SAFETY: neither call takes a pointer of ours. Rust's own start, which ignores SIGPIPE, does not
    // run under libFuzzer's main. No file may grow past 1 GiB, wherever an input writes.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let limit = libc::rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
        libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit);
        libc::atexit(remove_folder);
    }
    folder
}

fn make_fifo(path: &Path) {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("a path");
    // SAFETY: the path ends with NUL and outlives the call.
    let made = unsafe { libc::mkfifo(path.as_ptr(), 0o600) };
    assert_eq!(made, 0, "a FIFO");
}

extern "C" fn remove_folder() {
    if let Some(folder) = FOLDER.get() {
        let _ = std::fs::remove_dir_all(folder);
    }
}
