use super::*;

#[test]
fn ram() {
    type Small = Storage<1, 1, 1, 1>;
    type Large = Storage<9, 9, 9, 3, 2>;
    let words = |words: usize, keys: usize| 4 * words * keys;
    let most = |producers, keys, http, bits| {
        producers * PRODUCER_RAM_MAX + keys * KEY_RAM_MAX + http * HTTP_RAM_MAX + bits
    };
    assert!(size_of::<Small>() <= most(1, 2, 1, words(1, 2)), "{}", size_of::<Small>());
    assert!(size_of::<Large>() <= most(9, 18, 3, words(2, 18)), "{}", size_of::<Large>());
    println!(
        "{} {} {} {}",
        size_of::<Producer>(),
        size_of::<Topic>(),
        size_of::<Channel>(),
        size_of::<http::Connection<Task>>()
    );
    println!("{}", size_of::<Directory<'_>>());
    assert!(size_of::<Directory<'_>>() <= RAM_MAX);
}
