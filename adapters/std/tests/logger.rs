//! Loggers that use the client which they log: the core logs under a client's lock.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use nanonsq_std::{NotAcknowledged, Options, Publisher};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);

type Act = Box<dyn FnMut(String)>;

thread_local! {
    /// What this thread's test does with a line; nothing for what it logs itself meanwhile.
    static DO: RefCell<Option<Act>> = const { RefCell::new(None) };
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("nanonsq")
            && let Some(mut act) = DO.take()
        {
            act(record.args().to_string());
            DO.set(Some(act));
        }
    }

    fn flush(&self) {}
}

/// Nothing listens there, which is logged.
fn start(act: impl FnMut(String) + 'static) -> Publisher {
    // Another test may have done that.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Trace);
    let publisher = Publisher::builder("127.0.0.1:1").start().unwrap();
    DO.set(Some(Box::new(act)));
    publisher
}

#[tokio::test]
async fn a_logger_may_publish_what_it_logs() {
    let counts = Rc::new((Cell::new(0), Cell::new(0)));
    let known = Rc::new(RefCell::new(None));
    let (of_logger, its) = (counts.clone(), known.clone());
    let publisher = start(move |line| {
        let publisher: std::cell::Ref<'_, Option<Publisher>> = its.borrow();
        let Some(publisher) = &*publisher else { return };
        let published = publisher.try_publish("log", line, Options::default());
        let count = if published.is_ok() { &of_logger.0 } else { &of_logger.1 };
        count.set(count.get() + 1);
    });
    *known.borrow_mut() = Some(publisher.clone());
    let some = async {
        while counts.0.get() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LIMIT, some).await.expect("no deadlock");
    let shutdown = publisher.shutdown(Duration::from_millis(300));
    let left = timeout(LIMIT, shutdown).await.expect("no deadlock");
    assert_eq!(left.expect_err("not delivered").messages, counts.0.get());
    // The lines of the core are refused, since it holds the lock; those after the shutdown as well.
    assert!(counts.1.get() > 0);
}

#[tokio::test]
async fn the_last_handle_may_be_dropped_by_a_logger_under_the_lock() {
    let (dropped, is_dropped) = tokio::sync::oneshot::channel::<()>();
    let known = Rc::new(RefCell::new(None));
    let its = known.clone();
    let publisher = start(move |_| drop(its.take()));
    let mut receipt = publisher.publish("t", b"1").await.unwrap();
    *known.borrow_mut() = Some((publisher, dropped));
    // The sender goes with the handle.
    timeout(LIMIT, is_dropped).await.expect("dropped").unwrap_err();
    let outcome = timeout(LIMIT, receipt.acknowledged()).await.expect("closed after 5 s");
    assert_eq!(outcome, Err(NotAcknowledged::Ended));
}

#[tokio::test]
async fn after_a_panic_of_a_logger_nobody_waits_for_ever() {
    let publisher = start(|_| {});
    let mut receipt = publisher.publish("t", b"1").await.unwrap();
    tokio::task::yield_now().await;
    DO.set(Some(Box::new(|_| panic!("a logger"))));
    let outcome = timeout(LIMIT, receipt.acknowledged()).await.expect("in time");
    assert_eq!(outcome, Err(NotAcknowledged::Ended));
    let left = timeout(LIMIT, publisher.shutdown(LIMIT)).await.expect("in time").unwrap_err();
    assert_eq!(left.to_string(), "1 message was not delivered: its task panicked");
    publisher.publish("t", b"2").await.unwrap_err();
    assert_eq!(publisher.counters().accepted, 0, "they are gone with the task");
}
