//! A load generator on this thread: as fast as responses arrive, or at a constant rate that slow responses do not lower.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::loopback;
use crate::process::ROUTE;

/// Connections of callers, where nothing else is said.
pub(crate) const CONNECTIONS: usize = 66;

/// Requests each customer's answer once, in descending order, so that those measured are the most recent.
pub(crate) fn fill(port: u16, customers: usize) {
    let requests = customers as u64;
    Drive { connections: CONNECTIONS, requests, rate: None, customer: |number| requests - number }.run(port);
}

/// The load.
pub(crate) struct Drive<K> {
    pub(crate) connections: usize,
    pub(crate) requests: u64,
    /// Requests a second; `None`: each connection sends its next request once it has received a response.
    pub(crate) rate: Option<f64>,
    /// The customer of each request.
    pub(crate) customer: K,
}

/// A connection of a caller.
struct Line {
    stream: TcpStream,
    received: Vec<u8>,
    /// When its request should have been sent.
    due: Duration,
}

#[expect(clippy::disallowed_methods, reason = "a bench measures with the clock that is made for it")]
fn now() -> Instant {
    Instant::now()
}

impl<K: FnMut(u64) -> u64> Drive<K> {
    /// Sends the requests; returns the duration of each in microseconds, from when the request was due: a request that waits for
    /// a connection waits for the server (no coordinated omission).
    pub(crate) fn run(mut self, port: u16) -> Histogram<u64> {
        let mut poll = Poll::new().expect("a poll");
        let mut lines: Vec<Line> = (0..self.connections).map(|number| Line::open(port, number, &poll)).collect();
        let mut idle: Vec<usize> = (0..lines.len()).collect();
        let (mut begun, mut ended) = (0, 0);
        let mut times = Histogram::new(3).expect("three digits are few enough");
        let (mut events, mut buffer, start) = (Events::with_capacity(1024), vec![0; 1 << 20], now());
        let pause = self.rate.map(|_| Duration::ZERO);
        while ended < self.requests {
            while begun < self.requests
                && let Some(line) = idle.pop()
            {
                let passed = start.elapsed();
                let due = self.rate.map_or(passed, |rate| Duration::from_secs_f64(begun as f64 / rate));
                if due > passed {
                    idle.push(line);
                    break;
                }
                lines[line].ask(due, (self.customer)(begun));
                begun += 1;
            }
            poll.poll(&mut events, pause).expect("events");
            for event in &events {
                let line = &mut lines[event.token().0];
                if line.is_answered(&mut buffer) {
                    let took = start.elapsed().saturating_sub(line.due);
                    times.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)).expect("it grows");
                    ended += 1;
                    idle.push(event.token().0);
                }
            }
        }
        times
    }
}

impl Line {
    fn open(port: u16, number: usize, poll: &Poll) -> Self {
        // A blocking connect, so that many of them do not overflow the accept queue.
        let stream = std::net::TcpStream::connect(loopback(port)).expect("a server");
        stream.set_nonblocking(true).expect("an option of every stream");
        stream.set_nodelay(true).expect("an option of every stream");
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(number), Interest::READABLE).expect("room in the poll");
        Self { stream, received: Vec::new(), due: Duration::ZERO }
    }

    fn ask(&mut self, due: Duration, customer: u64) {
        let body = body(customer);
        let head = format!(
            "POST {ROUTE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.due = due;
        self.received.clear();
        self.stream.write_all(head.as_bytes()).expect("room for a request");
    }

    /// Reads the available bytes; returns whether the response is complete.
    fn is_answered(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => panic!("the server closed a connection"),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("a connection broke: {error}"),
            }
        }
        let Some(head) = self.received.windows(4).position(|end| end == b"\r\n\r\n") else { return false };
        let text = String::from_utf8_lossy(&self.received[..head]).to_ascii_lowercase();
        assert!(text.starts_with("http/1.1 200 "), "{text}");
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        self.received.len() == head + 4 + length.expect("a length")
    }
}

/// The body of a request for a customer, the same as that of wrk's script.
pub(crate) fn body(customer: u64) -> String {
    format!(r#"{{"params":{{"customerId":"38393309{customer:010}","useStatus":"","cardId":""}}}}"#)
}
