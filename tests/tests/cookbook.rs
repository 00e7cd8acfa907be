//! The recipes of the cookbook, run against a real node, and repeated, raced and cut off there. What
//! the pages show is what is run: `pages_show_what_is_run` compares them.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::path::Path;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_client::{
    BuildError, Client, Condition, Error, Executed, Handle, IdempotencyKey, Operation, Outcome,
    Refusal, Txn, TxnOutcome, fresh_key,
};
use onlyonce_tests::client::{client, runtime};
use onlyonce_tests::cluster::BOUND;
use onlyonce_tests::wait::wait_for;
use onlyonce_tests::{Lone, binaries};

// The recipes.

fn connect(nodes: Vec<String>) -> Result<Client, BuildError> {
    Client::builder().nodes(nodes).build()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Payment {
    Paid,
    TooLittleMoney,
}

async fn pay(
    client: &Client,
    number: &str,
    from: &str,
    to: &str,
    cents: u32,
) -> Result<Payment, Box<dyn std::error::Error>> {
    let mark = format!("payment/{number}");
    let order = format!("{cents} from {from} to {to}");
    let (paid, refused) = (format!("paid: {order}"), format!("refused: {order}"));
    loop {
        // The mark comes first: where there is one, it is decided, whatever the balance is now.
        match client.get(mark.clone()).await? {
            Some(decided) if decided == paid => return Ok(Payment::Paid),
            Some(decided) if decided == refused => return Ok(Payment::TooLittleMoney),
            Some(_) => return Err("this number is that of another payment".into()),
            None => {}
        }
        let balance = client.get(from.to_owned()).await?;
        let has = balance.as_deref().map_or(Ok("0"), std::str::from_utf8)?.parse::<i64>()?;
        let unchanged = balance.map_or(Condition::Absent, Condition::Equals);
        let decide = Txn::new().when_absent(mark.clone()).when(from.to_owned(), unchanged);
        let decide = if has < i64::from(cents) {
            decide.put(mark.clone(), refused.clone())
        } else {
            let moved = decide.incr(from.to_owned(), -i64::from(cents));
            moved.incr(to.to_owned(), i64::from(cents)).put(mark.clone(), paid.clone())
        };
        match client.txn(decide).await? {
            // Decided by this call, or by another one, or the balance is another: look again.
            TxnOutcome::Committed(_) | TxnOutcome::CompareFailed(_) => {}
            TxnOutcome::WriteFailed(_, failure) => return Err(failure.into()),
        }
    }
}

/// The till's total after the payment; none if the number was used for another amount.
async fn book(
    client: &Client,
    payment: &str,
    cents: i64,
) -> Result<Option<i64>, Box<dyn std::error::Error>> {
    match client.with_key(format!("payment-{payment}"))?.incr("till", cents).await {
        Ok(total) => Ok(Some(total)),
        Err(Error::Refused(Refusal::Mismatch)) => Ok(None),
        Err(error) => Err(error.into()), // `Unresolved`: call this again while the key is remembered
    }
}

/// A job for this worker: the one that it had when it died, or else one that waits.
async fn take(
    client: &Client,
    worker: &str,
) -> Result<Option<(String, Bytes)>, Box<dyn std::error::Error>> {
    let mine = format!("taken/{worker}/");
    let left = client.scan(mine.clone(), Some(format!("taken/{worker}0").into()), 1).await?;
    if let Some((key, job)) = left.rows.into_iter().next() {
        return Ok(Some((std::str::from_utf8(&key[mine.len()..])?.to_owned(), job)));
    }
    loop {
        let waiting = client.scan("job/", Some("job0".into()), 100).await?;
        if waiting.rows.is_empty() {
            return Ok(None);
        }
        for (key, job) in waiting.rows {
            let name = std::str::from_utf8(&key["job/".len()..])?.to_owned();
            let take = Txn::new()
                .when_equals(key.clone(), job.clone())
                .delete(key)
                .put(format!("{mine}{name}"), job.clone());
            if let TxnOutcome::Committed(_) = client.txn(take).await? {
                return Ok(Some((name, job)));
            }
        }
    }
}

/// The result, and the end of the job, in one entry: a job is done once, or not yet. Whether this is
/// the result that counts: not if the job was given to somebody else.
async fn finish(client: &Client, worker: &str, name: &str, result: Bytes) -> Result<bool, Error> {
    let (taken, done) = (format!("taken/{worker}/{name}"), format!("done/{name}"));
    let finish =
        Txn::new().when_present(taken.clone()).delete(taken).put(done.clone(), result.clone());
    match client.txn(finish).await? {
        TxnOutcome::Committed(_) => Ok(true),
        // This worker did it before, and died before it knew; or it is not its job any more.
        TxnOutcome::CompareFailed(_) => Ok(client.get(done).await? == Some(result)),
        TxnOutcome::WriteFailed(_, failure) => Err(Error::Failed(failure)),
    }
}

async fn next_number(client: &Client) -> Result<i64, Error> {
    client.incr("invoice-number", 1).await
}

async fn number_of(client: &Client, order: &str) -> Result<i64, Box<dyn std::error::Error>> {
    let keyed = client.with_key(format!("invoice-of-{order}"))?;
    Ok(keyed.incr("invoice-number", 1).await?)
}

/// Takes the lock; returns the fencing token, or none if somebody else has it.
async fn lock(client: &Client, owner: &str) -> Result<Option<i64>, Error> {
    let free = Txn::new().when_absent("lock");
    let mine = Txn::new().when_equals("lock", owner.to_owned()); // taken before this owner died
    for held in [free, mine] {
        let take = held.put("lock", owner.to_owned()).incr("fence", 1);
        match client.txn(take).await? {
            TxnOutcome::Committed(outcomes) => match outcomes.last() {
                Some(Outcome::Integer(token)) => return Ok(Some(*token)),
                other => unreachable!("an increment comes to an integer, not {other:?}"),
            },
            TxnOutcome::CompareFailed(_) => {}
            TxnOutcome::WriteFailed(_, failure) => return Err(Error::Failed(failure)),
        }
    }
    Ok(None)
}

/// Writes what the lock guards, only as long as no later token was handed out.
async fn guarded(client: &Client, token: i64, value: &str) -> Result<bool, Error> {
    let write = Txn::new().when_equals("fence", token.to_string()).put("guarded", value.to_owned());
    Ok(matches!(client.txn(write).await?, TxnOutcome::Committed(_)))
}

/// Gives the lock back, unless it is somebody else's by now.
async fn unlock(client: &Client, token: i64) -> Result<(), Error> {
    let free = Txn::new().when_equals("fence", token.to_string()).delete("lock");
    client.txn(free).await.map(drop)
}

struct Row {
    key: IdempotencyKey, // `fresh_key()`, when the row was written
    amount: i64,
}

async fn send(
    client: &Client,
    table: &mut VecDeque<Row>,
) -> Result<(), Box<dyn std::error::Error>> {
    while let Some(row) = table.front() {
        client.with_key(row.key.clone())?.incr("stock", row.amount).await?; // once, however often
        table.pop_front(); // died before this? it is sent again, and replayed
    }
    Ok(())
}

async fn start(nodes: Vec<String>, outbox: &Path) -> Result<Client, BuildError> {
    let client = Client::builder().nodes(nodes).outbox(outbox).build()?;
    for left in client.recover().await {
        println!("{:?} came to {:?}", left.operation, left.result); // of the run before
    }
    Ok(client)
}

async fn sell(client: &Client) -> Result<i64, Error> {
    client.incr("stock", -1).await // durable in the file before it is first sent
}

// The functions of docs/client.md.

/// In another process, on another day: the text is all that it takes.
async fn go_on(client: &Client, text: &str) -> Result<Outcome, Box<dyn std::error::Error>> {
    let handle: Handle = text.trim().parse()?; // a damaged text ends here; nothing was sent
    let Executed { outcome, replayed, kept_for } = client.resume(&handle).await?;
    println!("it {} {outcome:?}", if replayed { "had run, and came to" } else { "ran now:" });
    if let Some(kept_for) = kept_for {
        println!("for {kept_for:?} at least it may be asked for again");
    }
    Ok(outcome)
}

async fn under_a_key(
    client: &Client,
    operation: Operation,
) -> Result<(), Box<dyn std::error::Error>> {
    let keyed = client.with_key("order-1234")?; // or a timed key: client.with_key(fresh_key())?
    keyed.incr("balance", -30).await?; // the writes of a client; once, from however many processes
    let timed = client.with_key(fresh_key())?;
    let told = timed.execute_told(operation).await?;
    println!("{:?}, {}, {:?}", told.outcome, told.replayed, told.kept_for);
    Ok(())
}

// What becomes of them.

/// A lone node, and two clients of it, as of two processes.
fn clients() -> (Lone, [Client; 2]) {
    let lone = Lone::start(&[]);
    let two = [(); 2].map(|()| connect(lone.addresses()).expect("addresses"));
    (lone, two)
}

async fn number_at(client: &Client, key: &'static str) -> i64 {
    let value = client.get(key).await.expect("it serves");
    value.map_or(0, |value| String::from_utf8_lossy(&value).parse().expect("a number"))
}

/// Drops a call when it has been polled so often, as a program that dies does; none if it had not ended.
async fn cut_off<F: Future>(call: F, polls: usize) -> Option<F::Output> {
    let (mut call, mut polled) = (pin!(call), 0);
    poll_fn(|context| {
        if polled == polls {
            return Poll::Ready(None);
        }
        polled += 1;
        match call.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polled == polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Code without the lines that a page hides, and however it is indented.
fn visible(code: &str) -> String {
    let lines = code.lines().map(str::trim).filter(|line| !line.is_empty());
    let shown = lines.filter(|line| *line != "#" && !line.starts_with("# "));
    shown.fold(String::new(), |text, line| text + line + "\n")
}

/// The blocks of Rust in a page.
fn blocks(page: &str) -> Vec<String> {
    let parts = page.split("```").skip(1).step_by(2);
    let code =
        parts.filter_map(|part| part.strip_prefix("rust").and_then(|it| it.split_once('\n')));
    code.map(|(_, code)| visible(code)).collect()
}

/// Every block of the cookbook, and of the client's page except its whole program, is code of this file.
#[test]
fn pages_show_what_is_run() {
    let run = visible(include_str!("cookbook.rs"));
    for (page, least) in [("docs/cookbook.md", 8), ("docs/client.md", 2)] {
        let text = std::fs::read_to_string(binaries::workspace().join(page)).expect("it is there");
        let blocks = blocks(&text);
        let shown: Vec<_> = blocks.iter().filter(|code| !code.contains("fn main(")).collect();
        assert!(shown.len() >= least, "{page} has only {} blocks", shown.len());
        for code in shown {
            assert!(run.contains(code.as_str()), "{page} shows what is not run:\n{code}");
        }
    }
    assert_eq!(blocks("a\n```rust,no_run\n# use b;\n  c();\n```\n```sh\nd\n```\n"), ["c();\n"]);
}

/// A repeat of a payment is told what the first one was told, whatever happened to the balance since.
#[test]
fn a_payment_repeats_its_answer() {
    let (_lone, [client, other]) = clients();
    runtime(2).block_on(async {
        client.put("alice", "10").await.expect("it serves");
        for client in [&client, &other, &client] {
            assert_eq!(pay(client, "77", "alice", "bob", 10).await.expect("told"), Payment::Paid);
            assert_eq!((number_at(client, "alice").await, number_at(client, "bob").await), (0, 10));
        }
        let poor = || pay(&client, "78", "alice", "bob", 5);
        assert_eq!(poor().await.expect("told"), Payment::TooLittleMoney);
        client.incr("alice", 100).await.expect("it serves");
        assert_eq!(poor().await.expect("told"), Payment::TooLittleMoney);
        assert_eq!(number_at(&client, "alice").await, 100);
        assert_eq!(pay(&other, "79", "alice", "bob", 5).await.expect("told"), Payment::Paid);
        let error = pay(&other, "79", "alice", "bob", 6).await.expect_err("another amount");
        assert!(error.to_string().contains("another payment"), "{error}");
        assert_eq!((number_at(&client, "alice").await, number_at(&client, "bob").await), (95, 15));
        // Who has nothing at all pays nothing, or nothing at all.
        assert_eq!(pay(&client, "80", "carol", "bob", 0).await.expect("told"), Payment::Paid);
        let told = pay(&client, "81", "dave", "bob", 1).await.expect("told");
        assert_eq!(told, Payment::TooLittleMoney);
    });
}

/// Two processes carry out the same payments at the same time, and are told the same of each; the money
/// moves once.
#[test]
fn two_that_pay_are_told_the_same() {
    const PAYMENTS: i64 = 60;
    let (_lone, [one, two]) = clients();
    runtime(2).block_on(async {
        one.put("alice", "100").await.expect("it serves");
        let (mut paid, mut refused) = (0, 0);
        for payment in 0..PAYMENTS {
            let number = payment.to_string();
            let first = pay(&one, &number, "alice", "bob", 3);
            let second = pay(&two, &number, "alice", "bob", 3);
            // Money comes and goes meanwhile.
            let income = two.incr("alice", 1);
            let (first, second, income) = tokio::join!(first, second, income);
            let (first, second) = (first.expect("told"), second.expect("told"));
            assert_eq!(first, second, "payment {number}");
            income.expect("it serves");
            *(if first == Payment::Paid { &mut paid } else { &mut refused }) += 3;
        }
        assert!(paid > 0 && refused > 0, "{paid} paid, {refused} refused");
        assert_eq!(number_at(&one, "bob").await, paid);
        assert_eq!(number_at(&one, "alice").await, 100 + PAYMENTS - paid);
    });
}

/// A payment is cut off at each of its steps, and carried out again: the money moves once.
#[test]
fn a_payment_that_is_cut_off_is_repeated() {
    let (_lone, [client, other]) = clients();
    runtime(2).block_on(async {
        client.put("alice", "1000").await.expect("it serves");
        let mut cut = 0;
        for payment in 0..100 {
            let number = payment.to_string();
            match cut_off(pay(&client, &number, "alice", "bob", 10), payment % 10).await {
                Some(told) => assert_eq!(told.expect("told"), Payment::Paid),
                None => cut += 1,
            }
            let again = pay(&other, &number, "alice", "bob", 10).await.expect("told");
            assert_eq!(again, Payment::Paid, "there is money for all");
        }
        println!("{cut} of 100 were cut off");
        assert!(cut >= 20, "the first polls end nothing that waits for a node");
        assert_eq!((number_at(&client, "alice").await, number_at(&client, "bob").await), (0, 1000));
    });
}

/// A key gives the first reply back, to whoever uses it, and refuses another amount.
#[test]
fn a_booking_counts_once() {
    let (_lone, [one, two]) = clients();
    runtime(2).block_on(async {
        for client in [&one, &two, &one] {
            assert_eq!(book(client, "7", 30).await.expect("booked"), Some(30));
        }
        assert_eq!(book(&two, "8", 5).await.expect("booked"), Some(35));
        assert_eq!(book(&one, "7", 30).await.expect("booked"), Some(30));
        assert_eq!(book(&one, "7", 31).await.expect("told"), None);
        assert_eq!(number_at(&one, "till").await, 35);
    });
}

/// Two workers share the jobs. One dies with a job; started again it has it first, and no job is done
/// twice, nor by two.
#[test]
fn jobs_are_done_once() {
    const JOBS: usize = 150;
    let (lone, [one, two]) = clients();
    runtime(2).block_on(async {
        for job in 0..JOBS {
            one.put(format!("job/{job}"), format!("work {job}")).await.expect("it serves");
        }
        let work = async |client: &Client, worker: &str| {
            let mut done = 0;
            while let Some((name, job)) = take(client, worker).await.expect("told") {
                assert_eq!(job, format!("work {name}"));
                let result = format!("{worker} did {name}");
                assert!(finish(client, worker, &name, result.into()).await.expect("told"));
                done += 1;
            }
            done
        };
        let (killed, _) = take(&one, "one").await.expect("told").expect("jobs wait");
        drop(one);
        let one = client(&lone.addresses());
        let (found, _) = take(&one, "one").await.expect("told").expect("its job is left");
        assert_eq!(found, killed);
        // It dies once more, after the job is done and before it knows.
        for _ in 0..2 {
            assert!(finish(&one, "one", &found, "one did it".into()).await.expect("told"));
        }
        let (first, second) = tokio::join!(work(&one, "one"), work(&two, "two"));
        println!("{first} and {second} jobs");
        assert_eq!(first + second + 1, JOBS);
        let done = one.scan("done/", Some("done0".into()), 1_000).await.expect("it serves");
        assert_eq!(done.rows.len(), JOBS);
        let taken = one.scan("taken/", Some("taken0".into()), 1_000).await.expect("it serves");
        assert_eq!(taken.rows, []);
    });
}

/// A worker that was given up as dead, and whose job went back, ends nothing when it wakes.
#[test]
fn a_job_of_somebody_else_is_not_finished() {
    let (_lone, [one, two]) = clients();
    runtime(2).block_on(async {
        one.put("job/7", "work").await.expect("it serves");
        let (name, job) = take(&one, "one").await.expect("told").expect("it waits");
        let back = Txn::new().delete("taken/one/7").put("job/7", job);
        assert!(matches!(two.txn(back).await, Ok(TxnOutcome::Committed(_))));
        let (again, _) = take(&two, "two").await.expect("told").expect("it waits");
        assert_eq!(again, name);
        assert!(!finish(&one, "one", &name, "by one".into()).await.expect("told"));
        assert!(finish(&two, "two", &name, "by two".into()).await.expect("told"));
        assert!(!finish(&one, "one", &name, "by one".into()).await.expect("told"));
        assert_eq!(one.get("done/7").await.expect("it serves").as_deref(), Some(&b"by two"[..]));
    });
}

/// Numbers have no gap, and no two callers get the same; under a name it is always the same one.
#[test]
fn numbers_follow_each_other() {
    const EACH: i64 = 50;
    let (_lone, [one, two]) = clients();
    runtime(2).block_on(async {
        let draw = async |client: &Client| {
            let mut drawn = Vec::new();
            for _ in 0..EACH {
                drawn.push(next_number(client).await.expect("it serves"));
            }
            drawn
        };
        let (mut drawn, more) = tokio::join!(draw(&one), draw(&two));
        drawn.extend(more);
        drawn.sort_unstable();
        assert_eq!(drawn, (1..=2 * EACH).collect::<Vec<_>>());
        for (order, number) in [("a", 101), ("b", 102), ("a", 101)] {
            for client in [&one, &two] {
                assert_eq!(number_of(client, order).await.expect("drawn"), number);
            }
        }
        assert_eq!(next_number(&one).await.expect("it serves"), 103);
    });
}

/// One owner at a time; one that died has its lock back under a new token; late writes, and a late
/// unlock, do nothing.
#[test]
fn a_lock_fences_the_late() {
    let (_lone, [one, two]) = clients();
    runtime(2).block_on(async {
        let (first, second) = tokio::join!(lock(&one, "one"), lock(&two, "two"));
        let (first, second) = (first.expect("told"), second.expect("told"));
        assert!(first.is_some() != second.is_some(), "{first:?}, {second:?}");
        for (token, client) in [(first, &one), (second, &two)] {
            if let Some(token) = token {
                assert_eq!(token, 1);
                unlock(client, token).await.expect("told");
            }
        }
        let token = lock(&one, "one").await.expect("told").expect("it is free");
        assert_eq!((token, lock(&two, "two").await.expect("told")), (2, None));
        assert!(guarded(&one, token, "of one").await.expect("told"));
        let renewed = lock(&one, "one").await.expect("told").expect("its own");
        assert_eq!(renewed, 3);
        assert!(!guarded(&one, token, "late").await.expect("told"));
        assert!(guarded(&one, renewed, "of one again").await.expect("told"));
        // A supervisor breaks it.
        assert!(two.delete("lock").await.expect("it serves"));
        let broken = lock(&two, "two").await.expect("told").expect("it is free");
        assert!(!guarded(&one, renewed, "late").await.expect("told"));
        unlock(&one, renewed).await.expect("told");
        assert_eq!(lock(&one, "one").await.expect("told"), None, "a late unlock does nothing");
        assert!(guarded(&two, broken, "of two").await.expect("told"));
        let value = one.get("guarded").await.expect("it serves");
        assert_eq!(value.as_deref(), Some(&b"of two"[..]));
        for _ in 0..2 {
            unlock(&two, broken).await.expect("told");
        }
        assert_eq!(lock(&one, "one").await.expect("told"), Some(5));
    });
}

/// Rows that were sent before their program died are sent again, and count once.
#[test]
fn rows_are_sent_once() {
    let lone = Lone::start(&[]);
    runtime(2).block_on(async {
        let row = |amount| Row { key: fresh_key(), amount };
        let mut table: VecDeque<Row> = (1..=100).map(row).collect();
        let mut kills = 0;
        for polls in 1..=20 {
            let client = client(&lone.addresses());
            // The last one was sent, and stayed in the table.
            if let Some(Row { key, amount }) = table.front() {
                let keyed = client.with_key(key.clone()).expect("a fine key");
                keyed.incr("stock", *amount).await.expect("it serves");
            }
            match cut_off(send(&client, &mut table), polls).await {
                Some(sent) => sent.expect("all are sent"),
                None => kills += 1,
            }
        }
        println!("{kills} kills, {} rows left", table.len());
        assert!(kills > 0, "a hundred rows take more than a poll");
        send(&client(&lone.addresses()), &mut table).await.expect("all are sent");
        assert_eq!(number_at(&client(&lone.addresses()), "stock").await, 5050);
    });
}

/// What was on its way when the program died is carried out by the next one, once.
#[test]
fn a_file_outbox_is_sent_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let outbox = folder.path().join("stock.outbox");
    let length = || std::fs::metadata(&outbox).expect("it is there").len();
    let mut lone = Lone::start(&[]);
    let runtime = runtime(2);
    let client = runtime.block_on(start(lone.addresses(), &outbox)).expect("opens");
    assert_eq!(runtime.block_on(sell(&client)).expect("sold"), -1);
    lone.node.daemon().pause();
    let before = length();
    let sale = runtime.spawn(async move { sell(&client).await });
    wait_for("the sale to be in the file", BOUND, || match length() {
        unchanged if unchanged == before => Err(format!("{unchanged} bytes")),
        _ => Ok(()),
    });
    sale.abort();
    assert!(runtime.block_on(sale).expect_err("it has no answer").is_cancelled());
    lone.node.daemon().resume();
    let next = runtime.block_on(start(lone.addresses(), &outbox)).expect("the first one is gone");
    assert_eq!(runtime.block_on(number_at(&next, "stock")), -2);
    assert_eq!(runtime.block_on(sell(&next)).expect("sold"), -3);
}

/// A request without an answer is gone on with by its handle's text, and takes effect once.
#[test]
fn a_handle_is_gone_on_with() {
    let mut lone = Lone::start(&[]);
    let nodes = lone.addresses();
    let builder = Client::builder().nodes(nodes.clone()).deadline(Duration::from_secs(2));
    let first = builder.build().expect("addresses");
    runtime(2).block_on(async {
        first.incr("n", 1).await.expect("counted");
        lone.node.daemon().pause();
        let error = first.incr("n", 1).await.expect_err("it is paused");
        let Error::Unresolved(unresolved) = &error else { panic!("{error:?}") };
        let text = unresolved.handle().to_string();
        lone.node.daemon().resume();
        let second = client(&nodes);
        for _ in 0..2 {
            assert_eq!(go_on(&second, &text).await.expect("told"), Outcome::Integer(2));
        }
        let damaged = go_on(&second, &text[..text.len() - 1]).await.expect_err("damaged");
        assert!(damaged.downcast_ref::<onlyonce_client::HandleError>().is_some(), "{damaged}");
        assert_eq!(number_at(&second, "n").await, 2);
    });
}

/// The writes of a key of one's own count once, those of fresh keys each time.
#[test]
fn keys_are_as_the_page_says() {
    let (_lone, two) = clients();
    runtime(2).block_on(async {
        for client in &two {
            let count = onlyonce_client::Write::Incr { key: "n".into(), by: 1 };
            under_a_key(client, Operation::Write(count)).await.expect("told");
        }
        assert_eq!(number_at(&two[0], "balance").await, -30);
        assert_eq!(number_at(&two[0], "n").await, 2);
    });
}
