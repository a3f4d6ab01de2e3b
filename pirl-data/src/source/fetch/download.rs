//! A file from the network, in memory.

use std::io::Read;
use std::thread::sleep;
use std::time::Duration;

use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Error};

/// Tries before a file is given up.
const TRIES: u32 = 4;
/// For an answer to begin.
const ANSWER: Duration = Duration::from_secs(30);
/// For one try; what has come by then is kept for the next.
const TRY: Duration = Duration::from_secs(20 * 60);

/// Downloads the file at `url`, by the proxy that the environment names, and trusts whom the system
/// trusts. A connection that breaks is tried again, for the rest of the file. `progress` is called with
/// the bytes that have come. What went wrong is an error in words.
pub(super) fn get(url: &str, progress: &mut dyn FnMut(u64)) -> Result<Vec<u8>, String> {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier);
    let agent = Agent::config_builder()
        .tls_config(tls.build())
        .timeout_resolve(Some(ANSWER))
        .timeout_connect(Some(ANSWER))
        .timeout_recv_response(Some(ANSWER))
        .timeout_recv_body(Some(TRY))
        .build();
    get_by(&agent.into(), url, Duration::from_secs(1), progress)
}

/// As [`get`], with a pause after the first failure that doubles after each.
fn get_by(
    agent: &Agent,
    url: &str,
    pause: Duration,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut tries = 0;
    loop {
        let error = match go_on(agent, url, &mut bytes, progress) {
            Ok(()) => return Ok(bytes),
            Err(error) => error,
        };
        tries += 1;
        let hopeless = match &error {
            Error::StatusCode(code) => (400..500).contains(code),
            Error::HostNotFound | Error::BadUri(_) | Error::InvalidProxyUrl => true,
            _ => false,
        };
        if hopeless || tries == TRIES {
            let came = match bytes.len() {
                0 => String::new(),
                len => format!(" after {len} bytes"),
            };
            return Err(format!("{error}{came} ({tries} tries)"));
        }
        tracing::info!("{url}: {error}; trying again");
        sleep(pause * 2_u32.pow(tries - 1));
    }
}

/// Adds what is missing of the file to `bytes`.
fn go_on(
    agent: &Agent,
    url: &str,
    bytes: &mut Vec<u8>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    const PARTIAL: u16 = 206;
    let mut request = agent.get(url);
    if !bytes.is_empty() {
        request = request.header("Range", format!("bytes={}-", bytes.len()));
    }
    let mut response = request.call()?;
    if response.status().as_u16() != PARTIAL {
        bytes.clear(); // all of it comes
    }
    let mut reader = response.body_mut().as_reader();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&buffer[..count]);
        progress(bytes.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;

    /// Answers a connection with each of `answers` in turn, then closes it. Returns the address, and the
    /// requests when all were answered.
    fn serve(answers: Vec<Vec<u8>>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/file", listener.local_addr().unwrap());
        let answer = move |answer: Vec<u8>| {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request: Vec<String> = lines
                .map(Result::unwrap)
                .take_while(|l| !l.is_empty())
                .collect();
            stream.write_all(&answer).unwrap();
            request.join("\n")
        };
        let serve = move || answers.into_iter().map(answer).collect();
        (url, std::thread::spawn(serve))
    }

    fn answer(head: &str, body: &[u8]) -> Vec<u8> {
        [format!("HTTP/1.1 {head}\r\n\r\n").as_bytes(), body].concat()
    }

    fn get(url: &str) -> Result<Vec<u8>, String> {
        let agent = Agent::config_builder().proxy(None).build().into();
        get_by(&agent, url, Duration::from_millis(1), &mut |_| ())
    }

    #[test]
    fn a_broken_download_goes_on_where_it_broke() {
        let (url, served) = serve(vec![
            answer("503 Service Unavailable\r\nContent-Length: 0", b""),
            answer("200 OK\r\nContent-Length: 10", b"01234"),
            answer("206 Partial Content\r\nContent-Length: 5", b"56789"),
        ]);
        assert_eq!(get(&url).unwrap(), b"0123456789");
        let requests = served.join().unwrap();
        assert!(
            !requests[1].to_lowercase().contains("range:"),
            "{requests:?}"
        );
        assert!(
            requests[2].to_lowercase().contains("range: bytes=5-"),
            "{requests:?}"
        );
    }

    #[test]
    fn a_server_without_ranges_sends_all_again() {
        let (url, served) = serve(vec![
            answer("200 OK\r\nContent-Length: 10", b"01234"),
            answer("200 OK\r\nContent-Length: 10", b"0123456789"),
        ]);
        assert_eq!(get(&url).unwrap(), b"0123456789");
        served.join().unwrap();
    }

    #[test]
    fn what_is_not_there_is_not_asked_for_again() {
        let (url, served) = serve(vec![answer("404 Not Found\r\nContent-Length: 0", b"")]);
        let error = get(&url).unwrap_err();
        assert!(
            error.contains("404") && error.contains("1 tries"),
            "{error}"
        );
        served.join().unwrap();
    }
}
