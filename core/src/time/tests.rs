//! Times, timers, jitter and backoff.

use super::*;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Id {
    A,
    B,
}

impl TimerId for Id {
    fn index(self) -> usize {
        self as usize
    }
}

#[test]
fn instants_saturate() {
    let ms = Instant::from_millis;
    assert_eq!(ms(1).after(Span::from_millis(2)), ms(3));
    assert_eq!(Instant::NEVER.after(Span::MAX), Instant::NEVER);
    assert_eq!(Instant::from_millis(u64::MAX), Instant::NEVER);
    assert_eq!(ms(5).since(ms(3)), Span::from_millis(2));
    assert_eq!(ms(3).since(ms(5)), Span::ZERO);
    assert_eq!(Instant::NEVER.since(Instant::ZERO), Span::MAX);
    assert_eq!(format!("{:?} {:?}", ms(1500), Instant::NEVER), "1.500000s never");
}

#[test]
fn durations_round_up() {
    assert_eq!(Span::from(Duration::from_micros(1)), Span::from_millis(1));
    assert_eq!(Span::from(Duration::ZERO), Span::ZERO);
    assert_eq!(Span::from(Duration::MAX), Span::MAX);
    assert_eq!(Duration::from(Span::from_secs(2)), Duration::from_secs(2));
    assert_eq!(Span::from_secs(u32::MAX), Span::MAX);
    for ms in [0, 1, 0xffff, 0x1_0000, 0x1_0001, 3_600_000, u32::MAX] {
        assert_eq!(Span::from_millis(ms).as_micros(), u64::from(ms) * 1000);
    }
}

#[test]
fn timers_return_the_earliest_deadline() {
    let mut timers = Timers::<Id, 2>::new();
    assert_eq!(timers.next(), Instant::NEVER);
    timers.set(Id::A, Instant::from_millis(20));
    timers.set(Id::B, Instant::from_millis(10));
    assert_eq!(timers.next(), Instant::from_millis(10));
    assert!(!timers.expired(Id::B, Instant::from_micros(9_999)));
    assert!(timers.expired(Id::B, Instant::from_millis(10)));
    assert!(!timers.expired(Id::B, Instant::NEVER), "a deadline expires once");
    assert!(!timers.is_set(Id::B) && timers.is_set(Id::A));
    timers.stop_all();
    assert_eq!(timers.next(), Instant::NEVER);
    assert_eq!(size_of::<Timers<Id, 2>>(), 16);
}

#[test]
fn never_is_never_due() {
    let mut timers = Timers::<Id, 2>::new();
    timers.set(Id::A, Instant::NEVER);
    assert!(!timers.expired(Id::A, Instant::NEVER));
}

#[test]
fn backoff_grows_to_its_cap_with_jitter() {
    let spans = [100, 800, 0].map(Span::from_millis);
    let mut highest = [0; 12];
    for seed in 0..2000 {
        let mut jitter = Jitter::new(seed);
        let mut backoff = Backoff::NONE;
        assert_eq!(backoff.delay(spans, false, &mut jitter), Span::ZERO);
        for (n, high) in highest.iter_mut().enumerate() {
            let delay = backoff.delay(spans, false, &mut jitter).as_millis();
            let bound = (100u32 << n.min(20)).min(800);
            assert!((50..=bound).contains(&delay), "attempt {n}: {delay}");
            *high = delay.max(*high);
        }
        backoff.prove_good();
        assert_eq!(backoff.delay(spans, false, &mut jitter), Span::ZERO);
    }
    assert!(highest[0] > 95 && highest[1] > 190 && highest[11] > 780, "{highest:?}");
}

#[test]
fn a_server_that_accepts_and_closes_is_dialed_less_and_less() {
    let spans = [50, 800, 0].map(Span::from_millis);
    for seed in 0..2000 {
        let mut jitter = Jitter::new(seed);
        let mut attempts = Backoff::NONE;
        assert_eq!(attempts.delay(spans, true, &mut jitter), Span::ZERO, "after a good connection");
        let (mut at, mut dials) = (0, 1);
        for high in [1000, 2000, 4000, 8000, 16_000, 16_000] {
            // Dials that fail in between change nothing.
            assert!(attempts.delay(spans, false, &mut jitter) <= spans[1]);
            let delay = attempts.delay(spans, true, &mut jitter).as_millis();
            assert!((high / 2..=high).contains(&delay), "{delay} of {high}");
            at += delay;
            dials += u32::from(at <= 20_000);
        }
        assert!(dials <= 7, "{dials}");
        assert!(attempts.is_failing());
        attempts.prove_good();
        assert_eq!(attempts.delay(spans, false, &mut jitter), Span::ZERO);
    }
    // A fleet's spans are longer.
    let spans = [12, 16, 15].map(Span::from_secs);
    let mut attempts = Backoff::ONE;
    for n in 0..300 {
        let delay = attempts.delay(spans, true, &mut Jitter::new(n)).as_millis();
        assert!((6000..=16_000).contains(&delay));
    }
    let mut long = Backoff::ONE;
    long.delay([Span::MAX; 3], true, &mut Jitter::new(0));
    assert!(long.delay([Span::MAX; 3], true, &mut Jitter::new(0)) >= Span(u32::MAX / 2));
}

#[test]
fn backoff_at_its_edges() {
    let mut jitter = Jitter::new(0);
    let mut backoff = Backoff::NONE;
    for _ in 0..300 {
        let delay = backoff.delay([Span::MAX, Span::ZERO, Span::ZERO], false, &mut jitter);
        assert!(delay == Span::ZERO || delay >= Span(u32::MAX / 2));
    }
    let mut backoff = Backoff::ONE;
    assert!(backoff.delay([Span::ZERO; 3], false, &mut jitter) <= Span::from_millis(1));
}

#[test]
fn the_first_dial_after_a_good_connection_can_be_spread() {
    let mut jitter = Jitter::new(3);
    let mut backoff = Backoff::NONE;
    let spans = [Span::from_millis(1), Span::ZERO, Span::from_secs(10)];
    let mut sum = 0;
    for _ in 0..1000 {
        backoff.prove_good();
        sum += backoff.delay(spans, false, &mut jitter).as_millis();
    }
    assert!((4_500_000..5_500_000).contains(&sum), "{sum}");
}

#[test]
fn jitter_spreads_over_its_whole_range() {
    let mut jitter = Jitter::new(7);
    let (low, high) = (Span::from_millis(10), Span::from_millis(13));
    let mut seen = [0; 4];
    for _ in 0..4000 {
        let ms = jitter.between(low, high).as_millis();
        seen[usize::try_from(ms).unwrap() - 10] += 1;
    }
    assert!(seen.iter().all(|&n| n > 800), "{seen:?}");
    assert_eq!(jitter.between(high, low), high);
    let _ = jitter.between(Span::ZERO, Span::MAX);
    let around = jitter.around(Span::from_secs(16)).as_millis();
    assert!((14_000..=18_000).contains(&around));
    assert_ne!(
        Jitter::new(1).between(Span::ZERO, Span::MAX),
        Jitter::new(2).between(Span::ZERO, Span::MAX)
    );
}

/// The numbers of Marsaglia's paper, which begins with 2463534242.
#[test]
fn jitter_is_xorshift() {
    let mut jitter = Jitter::new(661814673);
    let numbers = [(); 3].map(|()| jitter.next_u32());
    assert_eq!(numbers, [723471715, 2497366906, 2064144800]);
}
