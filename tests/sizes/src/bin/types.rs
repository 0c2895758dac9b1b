//! The sizes of types on the target; the program is never run, only its image is read.

#![cfg_attr(target_os = "none", no_std, no_main)]

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::{address, consumer, drive, name, publisher, registration};
use nanonsq_sizes::platform::{Clock, LinkDialer};
use nanonsq_sizes::{clients, executor};

macro_rules! sizes {
    ($($name:ident: $size:expr,)+) => {$(
        #[used]
        #[unsafe(no_mangle)]
        static $name: u32 = $size as u32;
    )+};
}

/// Returns the size of the result of a function with two arguments.
const fn of2<A, B, R>(_: fn(A, B) -> R) -> usize {
    size_of::<R>()
}

/// Returns the size of the result of a function with three arguments.
const fn of3<A, B, C, R>(_: fn(A, B, C) -> R) -> usize {
    size_of::<R>()
}

type Handle = drive::publisher::Handle<'static, NoopRawMutex>;
type Runner = drive::publisher::Runner<'static, NoopRawMutex, LinkDialer, Clock>;
type LookupRunner = drive::registration::Runner<'static, NoopRawMutex, LinkDialer, Clock, 1, 1, 0>;

const fn of1<A, R>(_: fn(A) -> R) -> usize {
    size_of::<R>()
}

type ConsumerRunner =
    drive::consumer::Runner<'static, NoopRawMutex, LinkDialer, Clock, { clients::CONNECTIONS }, 0>;
type Storage<const CONNECTIONS: usize, const MESSAGES: usize> =
    consumer::Storage<CONNECTIONS, MESSAGES>;

sizes! {
    SIZE_OF_consumer_ring: clients::RING,
    SIZE_OF_consumer_rx: clients::CONSUMER_RX,
    SIZE_OF_consumer_lookup_rx: clients::CONSUMER_LOOKUP_RX,
    SIZE_OF_Consumer: size_of::<consumer::Consumer<'static>>(),
    SIZE_OF_Storage_2_4: size_of::<Storage<2, 4>>(),
    // The cost of one more.
    SIZE_OF_Storage_connection: size_of::<Storage<3, 4>>() - size_of::<Storage<2, 4>>(),
    SIZE_OF_Storage_message: size_of::<Storage<2, 5>>() - size_of::<Storage<2, 4>>(),
    SIZE_OF_Discovery_1_2: size_of::<consumer::Discovery<1, 2>>(),
    SIZE_OF_consumer_Message: size_of::<drive::consumer::Message<'static, NoopRawMutex, Clock>>(),
    SIZE_OF_consumer_run: of1(ConsumerRunner::run_with::<{ clients::CONSUMER_RX }>),
    SIZE_OF_task_consume: executor::size_of_task(clients::consume::<0, 0>),
    SIZE_OF_task_consume_lookup: executor::size_of_task(clients::consume::<1, { clients::FOUND }>),
    SIZE_OF_outbox: clients::OUTBOX,
    SIZE_OF_publisher_rx: clients::PUBLISHER_RX,
    SIZE_OF_lookup_rx: clients::LOOKUP_RX,
    SIZE_OF_Address: size_of::<address::Address>(),
    SIZE_OF_TopicName: size_of::<name::TopicName>(),
    SIZE_OF_Publisher: size_of::<publisher::Publisher<'static>>(),
    SIZE_OF_publisher_Resources: size_of::<drive::publisher::Resources<'static, NoopRawMutex>>(),
    SIZE_OF_Handle_publish: of3(Handle::publish),
    SIZE_OF_Handle_outcome: of2(Handle::outcome),
    SIZE_OF_Runner_run: of1(Runner::run),
    SIZE_OF_Lookup_1_1_0: size_of::<registration::Registration<'static, 1, 1, 0>>(),
    SIZE_OF_Lookup_2_1_0: size_of::<registration::Registration<'static, 2, 1, 0>>(),
    SIZE_OF_lookup_Runner_run_1: of1(LookupRunner::run),
    SIZE_OF_task_publish: executor::size_of_task(clients::publish),
    SIZE_OF_task_register_1: executor::size_of_task(clients::register::<1>),
    SIZE_OF_task_register_2: executor::size_of_task(clients::register::<2>),
}

#[cfg_attr(target_os = "none", cortex_m_rt::entry)]
fn main() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
