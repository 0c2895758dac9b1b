use crate::life::{Life, Signs, Stalled};
use crate::light::Light;

/// Checks each second from `from`; returns the first second at which a part hangs.
fn first_stall(
    life: &mut Life,
    from: u32,
    seconds: u32,
    signs: impl Fn(u32) -> Signs,
) -> Option<(u32, Stalled)> {
    (from..from + seconds).find_map(|now| Some((now, life.check(now, &signs(now))?)))
}

#[test]
fn progress_is_no_stall() {
    let mut life = Life::new();
    let signs = |now| Signs {
        driver: Some(now * 4),
        // A heartbeat each 30 s.
        publish: Some((now / 30, 30)),
        readings: Some((now / 3600, 3600)),
    };
    assert_eq!(first_stall(&mut life, 0, 20_000, signs), None);
}

#[test]
fn each_stalled_part_is_reported_after_its_limit() {
    let alive =
        |now| Signs { driver: Some(now), publish: Some((now, 30)), readings: Some((now, 5)) };
    let stall = |signs: fn(u32) -> Signs| {
        let mut life = Life::new();
        assert_eq!(first_stall(&mut life, 0, 100, alive), None);
        first_stall(&mut life, 100, 1000, signs)
    };
    let driver = stall(|now| Signs { driver: Some(1), publish: Some((now, 30)), readings: None });
    assert_eq!(driver, Some((121, Stalled::Driver)));
    let publish = stall(|now| Signs { driver: Some(now), publish: Some((1, 30)), readings: None });
    assert_eq!(publish, Some((221, Stalled::Publish)));
    let publish = stall(|_| Signs { publish: Some((1, 1)), ..Signs::default() });
    assert_eq!(publish, Some((134, Stalled::Publish)), "with heartbeats each second");
    let readings =
        stall(|now| Signs { driver: None, publish: Some((now, 30)), readings: Some((1, 5)) });
    assert_eq!(readings, Some((166, Stalled::Readings)));
}

#[test]
fn a_part_without_expected_progress_does_not_stall() {
    let mut life = Life::new();
    assert_eq!(first_stall(&mut life, 0, 10_000, |_| Signs::default()), None);
    // Each time that progress is expected again, the limit starts anew.
    let signs =
        |now: u32| Signs { driver: (!now.is_multiple_of(15)).then_some(7), ..Signs::default() };
    assert_eq!(first_stall(&mut life, 10_000, 10_000, signs), None);
}

#[test]
fn a_number_that_wraps_is_progress() {
    let mut life = Life::new();
    let signs = |now: u32| Signs { driver: Some(u32::MAX.wrapping_add(now)), ..Signs::default() };
    assert_eq!(first_stall(&mut life, 0, 1000, signs), None);
}

#[test]
fn all_light_patterns_differ() {
    let all = [Light::Setup, Light::NoNetwork, Light::NoNsqd, Light::Connected, Light::Here];
    let pattern = |light: Light| {
        (0..2000).step_by(Light::STEP_MS as usize).map(|ms| light.is_on(ms)).collect::<Vec<_>>()
    };
    for (index, light) in all.into_iter().enumerate() {
        assert_eq!(Light::from_byte(light.to_byte()), light);
        for other in &all[..index] {
            assert_ne!(pattern(light), pattern(*other), "{light:?} and {other:?}");
        }
    }
}
