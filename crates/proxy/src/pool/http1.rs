//! An HTTP/1 connection to a machine. As long as nothing is sent but heads it has no task of its
//! own: the task of the request that uses it drives it, so that a response wakes one task, not two
//! that tell each other.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use hyper::{
    Request, Response,
    body::{Body as _, Bytes, Frame, Incoming},
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::{net::TcpStream, task::coop::unconstrained};

use crate::{
    core::Core, machine::Connected, rare::Rare, replay_body::ReplayBody, socket::MachineSocket,
};

/// Ends when the connection is to be cut.
pub(super) type Cut = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module's text.
pub(crate) struct Http1 {
    sender: http1::SendRequest<ReplayBody>,
    /// None: a task of its own drives it, or it is over.
    driver: Option<Box<Driver>>,
}

/// Is woken by the socket, and by what is done with requests and responses; of the latter the task
/// that does it need not be told, so it is left alone meanwhile.
struct Driver {
    connection: Rare<http1::Connection<TokioIo<MachineSocket>, ReplayBody>>,
    cut: Rare<Cut>,
    _connected: Connected,
}

impl Driver {
    /// Reads and writes. Ready when the connection has ended or is to be cut.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match Pin::new(&mut self.connection).poll(context) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => Pin::new(&mut self.cut).poll(context),
        }
    }
}

impl Http1 {
    pub(super) async fn handshake(
        stream: TcpStream,
        cut: Cut,
        connected: Connected,
    ) -> hyper::Result<Self> {
        let stream = TokioIo::new(MachineSocket::new(stream));
        let (sender, connection) = http1::Builder::new().handshake(stream).await?;
        let (connection, cut) = (Rare::new(connection), Rare::new(cut));
        let driver = Driver { connection, cut, _connected: connected };
        Ok(Self { sender, driver: Some(Box::new(driver)) })
    }

    /// Gives it a task of its own, which goes on while nobody asks for the response: for requests
    /// with bodies, and upgrades.
    pub(super) fn detach(&mut self, core: &Core) {
        let Some(driver) = self.driver.take() else { return };
        core.tasks.spawn(async move {
            let Driver { connection, cut, _connected } = *driver;
            tokio::select! {
                biased;
                _ = connection.into_inner().with_upgrades() => {}
                () = cut => {}
            }
        });
    }

    /// Whether it is known to take no further request.
    pub(super) fn is_over(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether it was closed while nobody used it.
    pub(super) fn is_closed(&mut self) -> bool {
        if self.driver.as_mut().is_some_and(|driver| driver.connection.peek().is_ready()) {
            self.driver = None;
        }
        self.sender.is_closed()
    }

    /// The response is over: nothing is to be done before the next request, unless the machine
    /// closes it.
    pub(super) fn set_idle(&mut self) {
        if let Some(driver) = &mut self.driver {
            driver.connection.leave_alone();
            driver.connection.calm();
            driver.cut.leave_alone();
        }
    }

    /// Whether it can take a request.
    pub(super) async fn is_ready(&mut self) -> bool {
        if self.is_closed() {
            return false;
        }
        match self.driver {
            // What went over it before is over.
            Some(_) => self.sender.is_ready(),
            None => self.sender.ready().await.is_ok(),
        }
    }

    /// Sends a request, and waits for the response to it.
    pub(super) fn send(
        &mut self,
        request: Request<ReplayBody>,
    ) -> Sending<'_, impl Future<Output = Sent> + use<>> {
        let sent = unconstrained(self.sender.try_send_request(request));
        Sending { driver: &mut self.driver, sent }
    }

    /// The next part of a response's body.
    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
        body: &mut Incoming,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        if let Some(driver) = &mut self.driver {
            driver.connection.leave_alone();
            let mut quiet = Context::from_waker(Waker::noop());
            let frame = Pin::new(&mut *body).poll_frame(&mut quiet);
            if frame.is_ready() {
                return frame;
            }
        }
        drive(&mut self.driver, context, |context| Pin::new(&mut *body).poll_frame(context))
    }
}

/// What comes of a request.
pub(super) type Sent = Result<Response<Incoming>, TrySendError<Request<ReplayBody>>>;

pin_project! {
    /// A request that is being sent, or was. No async function, which would keep the request twice.
    pub(super) struct Sending<'a, F> {
        driver: &'a mut Option<Box<Driver>>,
        #[pin]
        sent: F,
    }
}

impl<F: Future> Future for Sending<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        drive(this.driver, context, |context| this.sent.as_mut().poll(context))
    }
}

/// Drives the connection, where that is to be done here, and then asks for what comes of it: which
/// wakes nobody, as it comes of nothing else.
fn drive<T>(
    driver: &mut Option<Box<Driver>>,
    context: &mut Context<'_>,
    ask: impl FnOnce(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    if driver.as_mut().is_some_and(|driver| driver.poll(context).is_ready()) {
        *driver = None;
    }
    match driver {
        Some(_) => ask(&mut Context::from_waker(Waker::noop())),
        None => ask(context),
    }
}
