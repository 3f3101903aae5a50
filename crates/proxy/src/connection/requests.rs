//! A client connection over which HTTP comes.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Connection, refused};
use crate::{
    HttpOptions, core::Core, rare::Rare, request_guard::Guarded, serving::Serving, slow_client,
};

/// Serves HTTP until the connection is to be closed.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    core: &Arc<Core>,
    connection: Arc<Connection>,
    stream: S,
    options: &HttpOptions,
) {
    let head_timeout = options.headers_read_timeout.unwrap_or(core.config.headers_read_timeout);
    let mut asked_to_end = pin!(async {
        tokio::select! {
            () = connection.drain.notified() => {}
            () = core.stopping.cancelled() => {}
        }
    });
    // Boxed: there are timers in it.
    let mut over = Box::pin(over(core, &connection, options, head_timeout));
    let mut slow = pin!(slow_client::found(&connection, &core.config));
    let mut stream = Guarded::new(stream, connection.clone());
    loop {
        // Not before something comes: what reads and writes HTTP has large buffers.
        let spoken = {
            let ends = pin!(async {
                tokio::select! {
                    () = asked_to_end.as_mut() => {}
                    () = over.as_mut() => {}
                }
            });
            tokio::select! {
                biased;
                spoken = stream.spoken() => spoken,
                () = Rare::new(ends) => return,
            }
        };
        let Ok(Some(spoken)) = spoken else { return };
        let mut serving = Serving::begin(core, &connection, stream, spoken);
        let what = {
            // As one: each that is waited for has to be looked at whenever something comes.
            let seldom = pin!(async {
                tokio::select! {
                    () = asked_to_end.as_mut() => Seldom::End,
                    () = over.as_mut() => Seldom::Over,
                    () = connection.may_park(core, spoken) => Seldom::Park,
                }
            });
            tokio::select! {
                biased;
                result = &mut serving => Seldom::Ended(result),
                what = Rare::new(seldom) => what,
                () = slow.as_mut() => return connection.is_slow.store(true, Ordering::Relaxed),
            }
        };
        let result = match what {
            Seldom::End => {
                serving.end();
                tokio::select! {
                    biased;
                    result = &mut serving => result,
                    () = &mut over => return,
                    () = slow => return connection.is_slow.store(true, Ordering::Relaxed),
                }
            }
            Seldom::Ended(result) => result,
            Seldom::Over => return,
            Seldom::Park => match serving.park() {
                Some(parked) => {
                    stream = parked;
                    continue;
                }
                None => return,
            },
        };
        let Err(error) = result else {
            if serving.has_answered_last() {
                Box::pin(connection.linger(core)).await;
            }
            return;
        };
        if error.is_parse() {
            // hyper has answered it.
            refused::tell(core, &connection, &error.to_string(), None);
            drop(serving);
        } else if let Some((stream, why)) = serving.unanswered() {
            let answer = refused::answer(core, &connection, options, stream, why);
            tokio::select! {
                () = answer => {}
                () = over => return,
            }
        } else {
            return tracing::debug!(%error, "connection ended");
        }
        return Box::pin(connection.linger(core)).await;
    }
}

/// What happens beside requests and answers.
enum Seldom {
    /// The connection is to end once its requests have.
    End,
    /// It is to be closed.
    Over,
    /// It can do without its buffers until the next request.
    Park,
    /// It has ended.
    Ended(hyper::Result<()>),
}

/// Ends when the connection is to be closed, as nothing comes over it any more.
async fn over(core: &Core, connection: &Connection, options: &HttpOptions, head_timeout: Duration) {
    tokio::select! {
        () = connection.silent(core, head_timeout) => {}
        () = connection.idle(options.idle_timeout) => {}
        // Nothing is read while a machine owes a response, or takes its time over one.
        () = connection.monitor.broken() => {}
    }
}
