//! Who holds a chunk, when it is given out again, and what is refused.

use super::mapping::HUGE_PAGE_BYTES;
use super::slab::class_of;
use super::*;
use proptest::prelude::*;

fn small() -> Arena {
    Arena::new(ArenaOptions {
        slab_bytes: 64 << 10,
        max_bytes: [256 << 10; 3],
        retain_bytes: [64 << 10; 3],
    })
}

#[test]
fn a_size_class_is_the_smallest_power_of_two_pages_that_fits() {
    for (length, class) in
        [(0, 0), (1, 0), (4096, 0), (4097, 1), (8192, 1), (8193, 2), (4 << 20, 10)]
    {
        assert_eq!(class_of(length), class, "{length}");
    }
    assert_eq!(class_of((4 << 20) + 1), CLASSES);
}

#[test]
fn chunks_are_page_aligned_and_apart() {
    let mut arena = small();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..32 {
        let id = arena.take(Pool::Alloc, 4096).expect("a chunk");
        let (address, _) = arena.expose(id, 4096).expect("its address");
        assert_eq!(address.as_ptr() as usize % PAGE_BYTES, 0);
        assert!(seen.insert(address.as_ptr() as usize), "given out once");
    }
}

#[test]
fn a_chunk_that_an_operation_holds_is_not_given_out_again_when_its_owner_goes() {
    let mut arena = small();
    let id = arena.take(Pool::Alloc, 4096).expect("a chunk");
    let held = arena.hold(id, 0, 4096).expect("a hold").as_ptr();
    arena.disown(id).expect("its owner goes");
    for _ in 0..63 {
        let other = arena.take(Pool::Alloc, 4096).expect("a chunk");
        assert_ne!(arena.expose(other, 1).expect("exposed").0.as_ptr(), held);
    }
    assert_eq!(arena.take(Pool::Alloc, 4096), Err(Exhausted::Limit));
    arena.unhold(id);
    let again = arena.take(Pool::Alloc, 4096).expect("free now");
    assert_eq!(arena.expose(again, 1).expect("exposed").0.as_ptr(), held);
    assert_ne!(again, id, "a new generation");
    assert_eq!(arena.hold(id, 0, 1).unwrap_err(), BadChunk::Unknown);
}

#[test]
fn an_owner_can_let_go_only_once() {
    let mut arena = small();
    let id = arena.take(Pool::Alloc, 10).expect("a chunk");
    assert_eq!(arena.disown(id), Ok(()));
    assert_eq!(arena.disown(id), Err(BadChunk::Unknown));
}

#[test]
fn a_range_outside_the_length_that_was_asked_for_is_refused() {
    let mut arena = small();
    let id = arena.take(Pool::Bounce, 100).expect("a chunk");
    assert!(arena.hold(id, 0, 100).is_ok());
    for (offset, length) in [(0, 101), (100, 1), (101, 0), (usize::MAX, 1), (1, usize::MAX)] {
        assert_eq!(arena.hold(id, offset, length).unwrap_err(), BadChunk::Range);
    }
}

#[test]
fn a_copy_is_of_all_bytes_and_no_others_wherever_it_begins() {
    let source: Vec<u8> = (0..3 * PAGE_BYTES).map(|at| (at % 251) as u8 + 1).collect();
    let mut target = vec![0; 5 * PAGE_BYTES];
    // How far behind the source it begins, page by page: near, as far as near goes, and elsewhere.
    let first = (source.as_ptr() as usize).wrapping_sub(target.as_ptr() as usize) % PAGE_BYTES;
    for behind in [0, 1, 16, 31, 32, 63, 64, 65, 2048, PAGE_BYTES - 16] {
        let start = first + behind;
        for length in [0, 1, 63, 64, 65, 127, 128, 1000, PAGE_BYTES, 2 * PAGE_BYTES + 100] {
            target.fill(0);
            // SAFETY: two vectors, with room for what is copied.
            unsafe { copy(source.as_ptr(), target.as_mut_ptr().add(start), length) };
            assert_eq!(target[start..start + length], source[..length], "{behind} {length}");
            let around = target[..start].iter().chain(&target[start + length..]);
            assert!(around.into_iter().all(|&byte| byte == 0), "{behind} {length}");
        }
    }
}

#[test]
fn pools_do_not_starve_each_other() {
    let mut arena = small();
    while arena.take(Pool::Alloc, 4096).is_ok() {}
    assert!(arena.take(Pool::Bounce, 4096).is_ok());
    assert_eq!(arena.stats(Pool::Alloc).used_bytes, 256 << 10);
}

#[test]
fn an_unused_slab_of_another_class_makes_room_at_the_limit() {
    let mut arena = small();
    let ids: Vec<_> = (0..64).map(|_| arena.take(Pool::Alloc, 4096).expect("4 KiB")).collect();
    assert_eq!(arena.take(Pool::Alloc, 65536), Err(Exhausted::Limit));
    for id in ids {
        arena.disown(id).expect("owned");
    }
    assert!(arena.stats(Pool::Alloc).mapped_bytes <= 64 << 10, "the rest was unmapped");
    for _ in 0..4 {
        arena.take(Pool::Alloc, 65536).expect("64 KiB, where 4 KiB chunks were");
    }
}

#[test]
fn long_chunks_begin_where_huge_pages_do_and_are_all_there() {
    let mut arena = Arena::new(ArenaOptions::default());
    let (kib, mib) = (1 << 10, 1 << 20);
    for (length, whole) in [(mib, 2), (2 * mib, 2), (3 * mib + 5, 4), (9 * mib - 4 * kib, 9)] {
        let mapped = arena.stats(Pool::Alloc).mapped_bytes;
        let id = arena.take(Pool::Alloc, length).expect("a chunk");
        let slab = arena.slab(id).expect("its slab").1;
        assert!((slab.as_ptr() as usize).is_multiple_of(HUGE_PAGE_BYTES), "{length}");
        assert!(slab.len() >= length && slab.len() <= whole * mib, "{length}: {}", slab.len());
        assert_eq!(arena.stats(Pool::Alloc).mapped_bytes - mapped, slab.len());
        let bytes = arena.bytes(id, 0, length).expect("all of it");
        bytes.fill(1);
        assert!(bytes.iter().all(|&byte| byte == 1));
    }
}

#[test]
fn a_reused_chunk_is_zeroed() {
    let mut arena = small();
    let id = arena.take(Pool::Alloc, 4096).expect("a chunk");
    arena.bytes(id, 0, 4096).expect("bytes").fill(7);
    arena.disown(id).expect("owned");
    let id = arena.take(Pool::Alloc, 4096).expect("the same");
    arena.zero(id).expect("owned");
    assert!(arena.bytes(id, 0, 4096).expect("bytes").iter().all(|&byte| byte == 0));
}

#[test]
fn bytes_are_refused_while_the_kernel_may_write_them() {
    let mut arena = small();
    let id = arena.take(Pool::Bounce, 4096).expect("a chunk");
    arena.hold(id, 0, 4096).expect("a hold");
    assert_eq!(arena.bytes(id, 0, 1).unwrap_err(), BadChunk::InFlight);
    arena.unhold(id);
    assert!(arena.bytes(id, 0, 1).is_ok());
}

#[test]
fn a_mapping_outlives_the_arena_while_a_buffer_refers_to_it() {
    let mut arena = small();
    let id = arena.take(Pool::Alloc, 4096).expect("a chunk");
    let (address, mapping) = arena.expose(id, 4096).expect("exposed");
    drop(arena);
    assert_eq!(Rc::strong_count(&mapping), 1);
    // SAFETY: `mapping` keeps the range mapped.
    unsafe { address.as_ptr().write(1) };
}

#[test]
fn memory_of_the_arena_is_not_copied_to_children() {
    let mut arena = small();
    let id = arena.take(Pool::Alloc, 4096).expect("a chunk");
    let start = arena.expose(id, 1).expect("exposed").0.as_ptr() as usize;
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
    let mut inside = false;
    for line in smaps.lines() {
        let range = line.split_whitespace().next().and_then(|word| word.split_once('-'));
        let bound = |text| usize::from_str_radix(text, 16).ok();
        if let Some((Some(from), Some(to))) = range.map(|(from, to)| (bound(from), bound(to))) {
            inside = (from..to).contains(&start);
        } else if inside && line.starts_with("VmFlags:") {
            assert!(line.split_whitespace().any(|flag| flag == "dc"), "{line}");
            return;
        }
    }
    panic!("the slab is not in smaps");
}

proptest! {
    #[test]
    fn any_number_used_as_a_chunk_id_is_refused_or_names_a_live_chunk(
        numbers in proptest::collection::vec(any::<u64>(), 64), offset: usize, length: usize,
    ) {
        let mut arena = small();
        let id = arena.take(Pool::Alloc, 5000).expect("a chunk");
        for number in numbers {
            let guess = ChunkId::from_number(number);
            if guess != id {
                prop_assert_eq!(arena.hold(guess, offset, length).unwrap_err(), BadChunk::Unknown);
                prop_assert_eq!(arena.disown(guess), Err(BadChunk::Unknown));
            }
        }
    }

    /// Any order of take, hold, unhold and disown keeps the books: no address is given twice,
    /// and when all is let go nothing counts as used.
    #[test]
    fn the_books_balance(steps in proptest::collection::vec((0..4u8, 0..9000usize, any::<u16>()), 1..300)) {
        let mut arena = small();
        let mut owned: Vec<ChunkId> = Vec::new();
        let mut held: Vec<ChunkId> = Vec::new();
        for (what, length, pick) in steps {
            let pick = pick as usize;
            match what {
                0 => if let Ok(id) = arena.take(Pool::Alloc, length) {
                    prop_assert!(!owned.contains(&id) && !held.contains(&id));
                    owned.push(id);
                },
                1 if !owned.is_empty() => {
                    let id = owned[pick % owned.len()];
                    arena.hold(id, 0, 0).expect("owned");
                    held.push(id);
                }
                2 if !held.is_empty() => arena.unhold(held.swap_remove(pick % held.len())),
                3 if !owned.is_empty() => {
                    let id = owned.swap_remove(pick % owned.len());
                    prop_assert_eq!(arena.disown(id), Ok(()));
                }
                _ => {}
            }
        }
        for id in held { arena.unhold(id); }
        for id in owned { prop_assert_eq!(arena.disown(id), Ok(())); }
        prop_assert_eq!(arena.stats(Pool::Alloc).used_bytes, 0);
        prop_assert!(arena.stats(Pool::Alloc).mapped_bytes <= 64 << 10);
    }
}
