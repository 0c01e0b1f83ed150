//! Makes TLS handshakes yield to connections that are established.
//!
//! A step of a handshake computes for 0.1 to 1 ms, many times as long as a request. A thousand clients that connect at
//! once would make every request wait for all of them.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::ready,
    time::Duration,
};

use tokio::{sync::Semaphore, task::yield_now, time::Instant};
use tokio_util::sync::PollSemaphore;

use crate::drain::Drain;

/// The queue of the handshakes of one worker. Between two steps all other tasks that are ready have a turn.
#[derive(Debug)]
pub(crate) struct HandshakeTurns {
    drain: Drain,
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    /// One permit per step.
    steps: Arc<Semaphore>,
    /// The steps that may run between two turns of the others.
    width: AtomicUsize,
    /// Nanoseconds of the steps since the others had a turn.
    spent: AtomicU64,
    /// [`MIN_STEP`], but for tests.
    min_step: Duration,
}

impl HandshakeTurns {
    /// A queue whose helper tasks run on `drain`.
    pub(crate) fn new(drain: Drain) -> Self {
        Self::with_min_step(drain, MIN_STEP)
    }

    fn with_min_step(drain: Drain, min_step: Duration) -> Self {
        Self {
            drain,
            queue: Arc::new(Queue {
                steps: Arc::new(Semaphore::new(1)),
                width: AtomicUsize::new(1),
                spent: AtomicU64::new(0),
                min_step,
            }),
        }
    }

    /// Runs a handshake. Each of its steps waits until the other tasks have had a turn.
    pub(crate) async fn run<F: Future>(&self, handshake: F) -> F::Output {
        let mut handshake = pin!(handshake);
        let mut steps = PollSemaphore::new(Arc::clone(&self.queue.steps));
        poll_fn(|cx| {
            // Held while the step runs: a step that panics gives its permit back. `None` never comes, because nothing
            // closes the semaphore.
            let permit = ready!(steps.poll_acquire(cx));
            let begun = Instant::now();
            let polled = handshake.as_mut().poll(cx);
            let (queue, step) = (Arc::clone(&self.queue), begun.elapsed());
            if queue.must_yield(step) {
                if let Some(permit) = permit {
                    permit.forget();
                }
                self.drain.spawn(async move { queue.end_step(step).await });
            }
            polled
        })
        .await
    }
}

impl Queue {
    /// Whether others have waited long enough, with this step. A turn of the event loop costs a microsecond, which the
    /// short last step of a handshake is not worth.
    fn must_yield(&self, step: Duration) -> bool {
        let step = u64::try_from(step.as_nanos()).unwrap_or(u64::MAX);
        let spent = self.spent.load(Ordering::Relaxed).saturating_add(step);
        let must_yield = Duration::from_nanos(spent) >= self.min_step;
        self.spent
            .store(if must_yield { 0 } else { spent }, Ordering::Relaxed);
        must_yield
    }

    /// Allows the next step after the other tasks have had a turn. If their turn is long, because the worker is busy,
    /// it allows several, so that new clients still get a part of the time.
    async fn end_step(&self, step: Duration) {
        let begun = Instant::now();
        yield_now().await;
        let width = self.width.load(Ordering::Relaxed);
        let next = next_width(width, step, begun.elapsed());
        self.width.store(next, Ordering::Relaxed);
        self.steps.add_permits((1 + next).saturating_sub(width));
    }
}

/// The steps to allow after a turn that took this long, in which `width` steps of this length ran.
fn next_width(width: usize, step: Duration, turn: Duration) -> usize {
    let share =
        |steps: usize| step.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX)) * BUSY_SHARE;
    if share(width + 1) < turn {
        (width + 1).min(MAX_WIDTH)
    } else if share(width) > turn {
        (width - 1).max(1)
    } else {
        width
    }
}

/// Steps that take less than this, together, count as one.
const MIN_STEP: Duration = Duration::from_micros(40);
/// Handshakes may use one part in this many of the time of a busy worker.
const BUSY_SHARE: u32 = 4;
/// Steps that may run between two turns of the other tasks.
const MAX_WIDTH: usize = 16;

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, task::Poll};

    use tokio::time::timeout;

    use super::*;

    /// The clock is paused, so that no step and no turn takes time.
    #[tokio::test(start_paused = true)]
    async fn established_connection_runs_between_any_two_steps() {
        const HANDSHAKES: usize = 50;
        let drain = Drain::new();
        let turns = Arc::new(HandshakeTurns::with_min_step(drain.clone(), Duration::ZERO));
        let order = Arc::new(Mutex::new(String::new()));
        let mut running = Vec::new();
        for _ in 0..HANDSHAKES {
            let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
            running.push(drain.spawn(async move {
                let mut is_first = true;
                let two_steps = poll_fn(|cx| {
                    order.lock().unwrap().push('h');
                    if !is_first {
                        return Poll::Ready(());
                    }
                    is_first = false;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                });
                turns.run(two_steps).await;
            }));
        }
        while running.iter().any(|handshake| !handshake.is_finished()) {
            order.lock().unwrap().push('c');
            yield_now().await;
        }
        let order = order.lock().unwrap();
        assert_eq!(order.matches('h').count(), 2 * HANDSHAKES);
        assert!(!order.contains("hh"), "{order}");
    }

    #[test]
    fn handshakes_of_a_busy_worker_get_a_quarter_of_its_time() {
        let micros = Duration::from_micros;
        let settled = |turn| {
            let mut width = 1;
            for _ in 0..2 * MAX_WIDTH {
                width = next_width(width, micros(100), micros(turn));
            }
            width
        };
        assert_eq!(
            [0, 10, 500, 850, 2_050, 1_000_000].map(settled),
            [1, 1, 1, 2, 5, MAX_WIDTH]
        );
        assert_eq!(
            next_width(MAX_WIDTH, micros(100), micros(10)),
            MAX_WIDTH - 1
        );
    }

    #[tokio::test]
    async fn dropped_handshake_keeps_no_step() {
        let turns = HandshakeTurns::new(Drain::new());
        let mut first = Box::pin(turns.run(std::future::pending::<()>()));
        let mut second = Box::pin(turns.run(std::future::pending::<()>()));
        for handshake in [&mut first, &mut second] {
            assert!(
                poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx)))
                    .await
                    .is_pending()
            );
        }
        drop((first, second));
        turns.run(std::future::ready(())).await;
    }

    #[tokio::test]
    async fn step_that_panics_lets_the_next_handshake_run() {
        let drain = Drain::new();
        let turns = Arc::new(HandshakeTurns::new(drain.clone()));
        let broken = Arc::clone(&turns);
        let panics = async { panic!("a step of a handshake") };
        let ended = drain.spawn(async move { broken.run(panics).await }).await;
        assert!(ended.unwrap_err().is_panic());
        let next = turns.run(std::future::ready(()));
        timeout(Duration::from_secs(10), next).await.unwrap();
    }
}
