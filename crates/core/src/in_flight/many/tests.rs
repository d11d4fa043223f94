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
