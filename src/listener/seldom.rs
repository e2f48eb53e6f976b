//! A future that is polled only when it asked for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Waits for what comes once in the life of a task that is woken often for other reasons: a poll that it did not ask for
/// costs no more than a look at a flag.
#[derive(Debug)]
pub(super) struct Seldom<F> {
    future: F,
    bell: Option<Arc<Bell>>,
}

/// What the future rings when it wants to be polled.
#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    task: Waker,
}

impl<F> Seldom<F> {
    pub(super) const fn new(future: F) -> Self {
        Self { future, bell: None }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl<F: Future + Unpin> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let bell = match self.bell.take().filter(|bell| bell.task.will_wake(cx.waker())) {
            Some(bell) if !bell.rung.load(Ordering::Acquire) => {
                self.bell = Some(bell);
                return Poll::Pending;
            }
            Some(bell) => bell,
            // The first time, or in another task.
            None => Arc::new(Bell { rung: AtomicBool::new(false), task: cx.waker().clone() }),
        };
        // Before the poll, so that a ring during it is heard.
        bell.rung.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&bell));
        self.bell = Some(bell);
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio_util::sync::CancellationToken;

    use super::*;

    struct Counts(u32, bool);

    impl Future for Counts {
        type Output = u32;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u32> {
            self.0 += 1;
            if std::mem::take(&mut self.1) {
                cx.waker().wake_by_ref();
            }
            if self.0 > 2 { Poll::Ready(self.0) } else { Poll::Pending }
        }
    }

    fn polled(seldom: &mut Seldom<Counts>, waker: &Waker) -> u32 {
        let _ = Pin::new(&mut *seldom).poll(&mut Context::from_waker(waker));
        seldom.future.0
    }

    #[test]
    fn it_is_polled_at_first_when_it_asked_and_in_another_task() {
        let task = || Waker::from(Arc::new(Bell { rung: AtomicBool::new(false), task: Waker::noop().clone() }));
        let (here, mut seldom) = (&task(), Seldom::new(Counts(0, false)));
        assert_eq!([(); 3].map(|()| polled(&mut seldom, here)), [1, 1, 1]);
        let other = task();
        assert_eq!([(); 3].map(|()| polled(&mut seldom, &other)), [2, 2, 2]);
        let mut asking = Seldom::new(Counts(0, true));
        assert_eq!([(); 3].map(|()| polled(&mut asking, here)), [1, 2, 2]);
    }

    #[tokio::test]
    async fn what_it_waits_for_wakes_its_task() {
        let token = CancellationToken::new();
        let mut seldom = Seldom::new(Box::pin(token.cancelled()));
        let pending = poll_fn(|cx| Poll::Ready(pin!(&mut seldom).poll(cx).is_pending())).await;
        assert!(pending);
        tokio::spawn({
            let token = token.clone();
            async move { token.cancel() }
        });
        seldom.await;
    }
}
