//! What an input can ask for. Numbers are drawn so that most of them mean something, and the rest are
//! anything at all.

use arbitrary::{Arbitrary, Result, Unstructured};

use node_uring_core::operation::{ASYNC, DRAIN, HARDLINK, LINK, QUIET};

/// How the engine is made, and how it ends.
#[derive(Arbitrary, Debug)]
pub struct Plan {
    pub entries_shift: u8,
    pub cq_shift: u8,
    pub task_run: u8,
    pub no_sq_array: bool,
    pub submit_all: bool,
    pub registered_descriptor: bool,
    pub unregistered: bool,
    pub inline_small: bool,
    pub small_pools: bool,
    pub ending: Ending,
}

/// What becomes of what is still out.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Ending {
    /// Everything is cancelled until it has completed.
    Cancel,
    /// The other ends of pipes are closed, and the loop sleeps until the eventfd wakes it.
    Wait,
    /// `Engine::shutdown`.
    Shutdown,
}

/// One call.
#[derive(Arbitrary, Debug)]
pub enum Step {
    Stage(Staging),
    Many(Herd),
    Turn,
    Flush,
    Woken,
    Cancel(Slot),
    Take {
        pool: u8,
        length: ChunkLength,
    },
    Disown(Pick),
    Hold {
        chunk: Pick,
        offset: Number,
        length: Number,
    },
    Unhold(u8),
    Fill {
        chunk: Pick,
        byte: u8,
    },
    Zero(Pick),
    TakeOpened(Slot),
    TakeStat(Slot),
    TakeCounts(Slot),
    AdoptPipe {
        to_write: bool,
        direct: bool,
    },
    AdoptFile {
        direct: bool,
    },
    AdoptNumber(i32),
    AdoptAgain(u8),
    /// Writes so many bytes into a pipe that the engine reads, or takes them out of one it writes.
    Feed {
        pipe: u8,
        bytes: u8,
    },
    HangUp(u8),
}

/// A request.
#[derive(Arbitrary, Debug)]
pub struct Staging {
    pub opcode: Code,
    pub flags: Flags,
    pub slot: Slot,
    pub file: Pick,
    pub chunk: Pick,
    pub offset: Number,
    pub length: Number,
    pub position: Number,
    pub path: Path,
}

/// A request for many.
#[derive(Arbitrary, Debug)]
pub struct Herd {
    pub opcode: Code,
    /// Mostly none: with any it is refused.
    pub flags: Option<Flags>,
    pub slot: Slot,
    pub file: Pick,
    pub chunk: Pick,
    pub offset: Number,
    /// Few, or more than the kernel is given at a time.
    pub count: u16,
    /// Bytes of each; of each by itself, when there are any.
    pub length: Number,
    pub lengths: Vec<u8>,
    pub position: Number,
    /// A list that is too short or too long is refused.
    pub positions_more: i8,
    pub fill: bool,
}

/// An operation's number.
#[derive(Debug)]
pub struct Code(pub u32);

impl<'a> Arbitrary<'a> for Code {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        let byte = u8::arbitrary(input)?;
        // Those after the first 12 are not modelled here (a message would be: anything_goes.rs has it); 25
        // is the first that does not exist, and the highest bit means nothing.
        Ok(Self(match byte {
            255 => 1 << 31 | u32::arbitrary(input)?,
            byte if byte % 13 == 12 => 25,
            byte => u32::from(byte % 13),
        }))
    }
}

/// Flags beside the opcode.
#[derive(Debug)]
pub struct Flags(pub u32);

impl<'a> Arbitrary<'a> for Flags {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match u8::arbitrary(input)? {
            byte @ 0..160 => {
                let some = [LINK, LINK, HARDLINK, ASYNC, LINK | ASYNC, DRAIN, DRAIN | LINK, QUIET];
                some.get(byte as usize % 12).copied().unwrap_or(0)
            }
            // Every combination, bits that mean nothing included.
            byte => u32::from(byte) << 8,
        }))
    }
}

/// A slot: mostly one of few, so that they meet.
#[derive(Clone, Copy, Debug)]
pub struct Slot(pub u32);

impl<'a> Arbitrary<'a> for Slot {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match u8::arbitrary(input)? {
            255 => (1 << 20) | u32::arbitrary(input)?,
            // The table grows to the highest slot used: 120 bytes each.
            254 => u32::from(u16::arbitrary(input)? % 3000),
            byte => u32::from(byte % 40),
        }))
    }
}

/// A chunk or a file.
#[derive(Clone, Copy, Debug)]
pub enum Pick {
    /// One of those that are live, by place.
    Live(u8),
    /// One of those that were given back or closed.
    Gone(u8),
    /// Any number.
    Number(u64),
}

impl<'a> Arbitrary<'a> for Pick {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u8::arbitrary(input)? {
            255 => Self::Number(u64::arbitrary(input)?),
            254 => Self::Number(0),
            byte @ 230.. => Self::Gone(byte),
            byte => Self::Live(byte),
        })
    }
}

/// An offset, a length or a position.
#[derive(Clone, Copy, Debug)]
pub struct Number(pub u64);

impl<'a> Arbitrary<'a> for Number {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match u8::arbitrary(input)? {
            byte @ 0..64 => u64::from(byte),
            byte @ 64..128 => u64::from(byte - 64) * 512,
            128..192 => u64::from(u16::arbitrary(input)?),
            192..208 => 1 << (u8::arbitrary(input)? % 64),
            208..224 => u64::arbitrary(input)?,
            224..240 => u64::MAX - u64::from(u8::arbitrary(input)?),
            _ => 0,
        }))
    }
}

/// The length of a chunk: around the edges of size classes, and long ones that need a slab alone.
#[derive(Debug)]
pub struct ChunkLength(pub usize);

impl<'a> Arbitrary<'a> for ChunkLength {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match u8::arbitrary(input)? {
            byte @ 0..128 => byte as usize * 100,
            byte @ 128..192 => (4096usize << (byte % 6)) + (byte as usize / 6 % 3) - 1,
            192..224 => u16::arbitrary(input)? as usize,
            byte @ 224..240 => byte as usize * 1000,
            _ => usize::arbitrary(input)?,
        }))
    }
}

/// The bytes of a path.
#[derive(Debug)]
pub struct Path(pub Vec<u8>);

impl<'a> Arbitrary<'a> for Path {
    fn arbitrary(input: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match u8::arbitrary(input)? {
            0..80 => b"file".to_vec(),
            80..100 => b"fifo".to_vec(),
            100..110 => b".".to_vec(),
            110..120 => b"new".to_vec(),
            120..160 => Vec::new(),
            byte @ 160..170 => vec![byte; 4090 + byte as usize % 10],
            byte => input.bytes(input.len().min(byte as usize % 8))?.to_vec(),
        }))
    }
}
