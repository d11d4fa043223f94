//! What becomes of each of many, whatever the kernel says of it and when.

use super::*;

#[test]
fn many_that_are_cancelled_go_on_with_nothing_and_keep_what_was_moved() {
    let mut many = Many::new(Opcode::Read, files::Target::Descriptor(-1), 5, 1);
    (many.fill, many.lengths) = (true, Lengths::All(100));
    for index in 0..4 {
        assert_eq!(many.next_index(), Some(index));
    }
    assert!(matches!(many.take(0, 40), Taken::Again), "it goes on with its rest");
    many.cancel();
    assert!(matches!(many.take(1, 30), Taken::Settled));
    assert!(matches!(many.take(2, -libc::EINTR), Taken::Settled));
    assert!(matches!(many.take(3, 100), Taken::Settled));
    assert_eq!(many.results, [40, 30, -libc::EINTR, 100, -libc::ECANCELED]);
    assert!(!many.has_more());
}

#[test]
fn one_that_was_interrupted_and_is_cancelled_before_its_next_try_has_moved_nothing_and_says_so() {
    let mut many = Many::new(Opcode::Write, files::Target::Descriptor(-1), 3, 1);
    (many.fill, many.lengths) = (true, Lengths::All(100));
    for index in 0..3 {
        assert_eq!(many.next_index(), Some(index));
    }
    assert!(matches!(many.take(0, -libc::EINTR), Taken::MoreAgain));
    assert!(matches!(many.take(1, 40), Taken::Again));
    assert!(matches!(many.take(2, 100), Taken::Settled));
    many.cancel();
    assert_eq!(many.results, [-libc::ECANCELED, 40, 100]);
}

#[test]
fn one_that_was_short_is_complete_with_its_last_byte() {
    let mut many = Many::new(Opcode::Read, files::Target::Descriptor(-1), 1, 1);
    (many.fill, many.lengths) = (true, Lengths::All(100));
    assert_eq!(many.next_index(), Some(0));
    assert!(matches!(many.take(0, 40), Taken::MoreAgain));
    assert_eq!(many.next_index(), Some(0));
    assert!(matches!(many.take(0, 60), Taken::Settled));
    assert_eq!(many.results, [100]);
}
