//! The command line: words in, [`Settings`] or a message out. Touches nothing else.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;

/// What `--help` prints.
pub const USAGE: &str = "\
usage: floor nop   [options]
       floor read  --file F [options] [file options]
       floor write --file F [options] [file options]

options
  --batch N            operations in flight at most, 1 to 32768 (128)
  --operations M       operations in each round (1000000)
  --rounds R           rounds in this process (1)
  --warmup W           operations before the first round, not reported (16 batches)
  --wait batch|one     enter waits for all in flight, or for one (one if --direct, else batch)

file options
  --file F             regular file or block device; write overwrites its blocks, never its size
  --block BYTES        length of each operation, and what its position is a multiple of (4096)
  --direct             O_DIRECT
  --pre-read           reads the whole file once, first, so that it is cached
  --memory BLOCKS      blocks of memory, taken in turn; the batch or more, which it is by default
  --fixed-buffers      READ_FIXED and WRITE_FIXED on registered buffers
  --registered-file    the file's registered index in place of its descriptor
  --seed S             of the positions (1)
";

/// The kernel's limit for a submission queue (`IORING_MAX_ENTRIES`).
const BATCH_MAX: u32 = 32_768;
/// The longest single read or write (`MAX_RW_COUNT` with 4 KiB pages).
const BLOCK_BYTES_MAX: u32 = 0x7fff_f000;

/// 4 GiB of blocks of 4 KiB.
const MEMORY_BLOCKS_MAX: u32 = 1 << 20;

/// The operation that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nop,
    Read,
    Write,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Nop => "nop",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// What each enter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// All that is in flight: batch after batch.
    Batch,
    /// One completion: what completed is submitted again, the rest stays in flight.
    One,
}

impl Wait {
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::One => "one",
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub kind: Kind,
    pub batch: u32,
    pub operations: u64,
    pub rounds: u32,
    /// In operations.
    pub warmup: u64,
    pub wait: Wait,
    /// `None` for NOPs, and for nothing else.
    pub file: Option<FileSettings>,
}

#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one switch of the command line")]
pub struct FileSettings {
    pub path: PathBuf,
    pub block_bytes: u32,
    /// Blocks of memory: each operation takes the next.
    pub memory_blocks: u32,
    pub direct: bool,
    pub pre_read: bool,
    pub fixed_buffers: bool,
    pub registered_file: bool,
    pub seed: u64,
}

/// Reads the words that follow the program's name.
pub fn parse(words: &[OsString]) -> Result<Settings, String> {
    let mut words = Words { rest: words };
    let kind = match words.next().and_then(OsStr::to_str) {
        Some("nop") => Kind::Nop,
        Some("read") => Kind::Read,
        Some("write") => Kind::Write,
        Some(other) => return Err(format!("unknown command {other}\n{USAGE}")),
        None => return Err(format!("a command is missing\n{USAGE}")),
    };

    // Defaults
    let (mut batch, mut operations, mut rounds) = (128, 1_000_000, 1);
    let (mut warmup, mut wait, mut path, mut memory) = (None, None, None, None);
    let mut file = FileSettings {
        path: PathBuf::new(),
        block_bytes: 4096,
        memory_blocks: 0,
        direct: false,
        pre_read: false,
        fixed_buffers: false,
        registered_file: false,
        seed: 1,
    };

    // Interpretation
    while let Some(word) = words.next() {
        let name = word.to_str().ok_or("an option is not UTF-8")?;
        match name {
            "--batch" => batch = words.number(name, 1, BATCH_MAX)?,
            "--operations" => operations = words.number(name, 1, u64::MAX)?,
            "--rounds" => rounds = words.number(name, 1, u32::MAX)?,
            "--warmup" => warmup = Some(words.number(name, 0, u64::MAX)?),
            "--wait" => wait = Some(words.wait(name)?),
            _ if kind == Kind::Nop => return Err(format!("nop has no option {name}")),
            "--file" => path = Some(PathBuf::from(words.value(name)?)),
            "--block" => file.block_bytes = words.number(name, 1, BLOCK_BYTES_MAX)?,
            "--memory" => memory = Some(words.number(name, 1, MEMORY_BLOCKS_MAX)?),
            "--direct" => file.direct = true,
            "--pre-read" => file.pre_read = true,
            "--fixed-buffers" => file.fixed_buffers = true,
            "--registered-file" => file.registered_file = true,
            "--seed" => file.seed = words.number(name, 0, u64::MAX)?,
            _ => return Err(format!("{} has no option {name}", kind.name())),
        }
    }

    // What follows from the rest
    let wait = wait.unwrap_or(if file.direct { Wait::One } else { Wait::Batch });
    let warmup = warmup.unwrap_or(16 * u64::from(batch));
    file.memory_blocks = memory.unwrap_or(batch);
    if file.memory_blocks < batch {
        return Err(format!("--memory {} is less than the batch", file.memory_blocks));
    }
    let file = match (kind, path) {
        (Kind::Nop, _) => None,
        (_, Some(path)) => Some(FileSettings { path, ..file }),
        (_, None) => return Err(format!("{} needs --file", kind.name())),
    };
    Ok(Settings { kind, batch, operations, rounds, warmup, wait, file })
}

/// The words that are left.
struct Words<'a> {
    rest: &'a [OsString],
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a OsStr> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn value(&mut self, name: &str) -> Result<&'a OsStr, String> {
        self.next().ok_or_else(|| format!("{name} needs a value"))
    }

    fn number<T: FromStr + PartialOrd>(&mut self, name: &str, min: T, max: T) -> Result<T, String> {
        let text = self.value(name)?.to_string_lossy();
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| format!("{name} {text} is not an integer in its range"))
    }

    fn wait(&mut self, name: &str) -> Result<Wait, String> {
        match self.value(name)?.to_str() {
            Some("batch") => Ok(Wait::Batch),
            Some("one") => Ok(Wait::One),
            _ => Err(format!("{name} is batch or one")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Settings, String> {
        parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_bare_nop_has_the_defaults() {
        let settings = parse_line("nop").unwrap();
        let expected = Settings {
            kind: Kind::Nop,
            batch: 128,
            operations: 1_000_000,
            rounds: 1,
            warmup: 2048,
            wait: Wait::Batch,
            file: None,
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn every_option_reaches_its_setting() {
        let line = "write --file /a/b --block 512 --batch 7 --operations 9 --rounds 3 --warmup 0 \
                    --memory 8 --direct --pre-read --fixed-buffers --registered-file --seed 42 \
                    --wait batch";
        let expected = Settings {
            kind: Kind::Write,
            batch: 7,
            operations: 9,
            rounds: 3,
            warmup: 0,
            wait: Wait::Batch,
            file: Some(FileSettings {
                path: PathBuf::from("/a/b"),
                block_bytes: 512,
                memory_blocks: 8,
                direct: true,
                pre_read: true,
                fixed_buffers: true,
                registered_file: true,
                seed: 42,
            }),
        };
        assert_eq!(parse_line(line).unwrap(), expected);
    }

    #[test]
    fn only_direct_files_wait_for_one_by_default() {
        assert_eq!(parse_line("read --file f --direct").unwrap().wait, Wait::One);
        assert_eq!(parse_line("read --file f").unwrap().wait, Wait::Batch);
        assert_eq!(parse_line("read --file f --wait one").unwrap().wait, Wait::One);
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        for (line, part) in [
            ("", "command is missing"),
            ("sleep", "unknown command sleep"),
            ("read", "needs --file"),
            ("nop --file f", "nop has no option --file"),
            ("read --file f --fast", "read has no option --fast"),
            ("nop --batch", "--batch needs a value"),
            ("nop --batch 0", "--batch 0"),
            ("nop --batch 32769", "--batch 32769"),
            ("nop --operations 0", "--operations 0"),
            ("nop --operations 1e6", "--operations 1e6"),
            ("nop --rounds -1", "--rounds -1"),
            ("nop --wait two", "--wait is batch or one"),
            ("read --file f --memory 127", "--memory 127 is less than the batch"),
            ("nop --memory 128", "nop has no option --memory"),
            ("read --file f --block 0", "--block 0"),
            ("read --file f --block 2147483648", "--block 2147483648"),
        ] {
            let message = parse_line(line).unwrap_err();
            assert!(message.contains(part), "{line}: {message}");
        }
    }
}
