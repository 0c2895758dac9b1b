// go-nsq-client is an ordinary program on go-nsq, for tests: it consumes a channel or publishes to a topic, and
// reports what it did in lines of JSON on standard output. The bodies that it publishes begin with a number, which
// decides what the consumer does with the first delivery of a message.
//
// tests/peers/pynsq/client.py and tests/bench-tokio-nsq/src/bin/tokio-nsq-client.rs have the same flags and print the
// same lines.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nsqio/go-nsq"
)

// Messages are also ended by other goroutines than the handler's, so several print lines.
var (
	out   = bufio.NewWriterSize(os.Stdout, 1<<16)
	print = json.NewEncoder(out)
	lock  sync.Mutex
)

var (
	nsqd      = flag.String("nsqd", "", "TCP address of nsqd")
	lookupd   = flag.String("lookupd", "", "consume: HTTP address of nsqlookupd, instead of -nsqd")
	topic     = flag.String("topic", "", "topic")
	channel   = flag.String("channel", "", "consume: channel")
	inFlight  = flag.Int("max-in-flight", 100, "consume: messages in flight")
	timeout   = flag.Int("msg-timeout-ms", 0, "consume: when nsqd gives up on a delivery; 0 is its default")
	reqEvery  = flag.Int("requeue-every", 0, "consume: requeue each message whose number is 1 modulo this, once")
	reqDelay  = flag.Int("requeue-delay-ms", 0, "consume: with this delay")
	lateEvery = flag.Int("timeout-every", 0, "consume: answer each message whose number is 2 modulo this only when it was delivered again")
	holdEvery = flag.Int("touch-every", 0, "consume: keep each message whose number is 3 modulo this for two timeouts, with TOUCH")
	dieAfter  = flag.Int("die-after", 0, "consume: kill this process when this many messages are finished")
	command   = flag.String("command", "pub", "publish: pub, mpub or dpub")
	count     = flag.Int("count", 1000, "publish: number of messages")
	first     = flag.Int("first", 0, "publish: number of the first message")
	size      = flag.Int("size", 16, "publish: bytes of each message")
	delay     = flag.Int("delay-ms", 0, "publish: delay of dpub")
	version   = flag.Bool("version", false, "print the version of go-nsq")
)

// delivery is the line that the consumer prints for each message when it has decided what to do with it.
type delivery struct {
	ID       string `json:"id"`
	Body     string `json:"body"`
	Attempts uint16 `json:"attempts"`
	Action   string `json:"action"` // fin, req, timeout (left unanswered) or touch (finished after two timeouts)
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("go-nsq-client: ")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: go-nsq-client [flags] consume|publish")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *version {
		fmt.Printf("go-nsq-client (go-nsq v%s)\n", nsq.VERSION)
		return
	}
	switch flag.Arg(0) {
	case "consume":
		consume()
	case "publish":
		publish()
	default:
		flag.Usage()
		os.Exit(2)
	}
}

// consume runs until SIGTERM.
func consume() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)

	config := nsq.NewConfig()
	config.ClientID = "go-nsq-client"
	config.MaxInFlight = *inFlight
	config.MaxAttempts = 0
	config.LookupdPollInterval = 100 * time.Millisecond
	if *timeout > 0 {
		config.MsgTimeout = milliseconds(*timeout)
	}
	consumer, err := nsq.NewConsumer(*topic, *channel, config)
	check(err)
	consumer.SetLogger(log.Default(), nsq.LogLevelWarning)
	handler := &handler{late: map[int]*nsq.Message{}}
	consumer.AddHandler(handler)
	if *lookupd != "" {
		check(consumer.ConnectToNSQLookupd(*lookupd))
	} else {
		check(consumer.ConnectToNSQD(*nsqd))
	}
	// Flush often: tests read the output.
	go func() {
		for range time.Tick(20 * time.Millisecond) {
			flush()
		}
	}()
	<-signals
	consumer.Stop()
	<-consumer.StopChan
	flush()
}

type handler struct {
	late     map[int]*nsq.Message
	finished int
}

// HandleMessage runs in one goroutine.
func (h *handler) HandleMessage(message *nsq.Message) error {
	message.DisableAutoResponse()
	n := number(message.Body)
	first := message.Attempts == 1
	switch {
	case first && is(n, 1, *reqEvery):
		report(message, "req")
		message.RequeueWithoutBackoff(milliseconds(*reqDelay))
		return nil
	case first && is(n, 2, *lateEvery):
		report(message, "timeout")
		h.late[n] = message
		return nil
	case first && is(n, 3, *holdEvery):
		report(message, "touch")
		go hold(message)
		return nil
	}
	report(message, "fin")
	message.Finish()
	if late := h.late[n]; late != nil {
		// Too late and harmless; go-nsq itself still counts this delivery as in flight until it is finished.
		late.Finish()
		delete(h.late, n)
	}
	h.finished++
	if h.finished == *dieAfter {
		flush()
		check(syscall.Kill(syscall.Getpid(), syscall.SIGKILL))
	}
	return nil
}

func hold(message *nsq.Message) {
	for i := 0; i < 6; i++ {
		time.Sleep(milliseconds(*timeout) / 3)
		message.Touch()
	}
	message.Finish()
}

// publish returns when all messages are acknowledged.
func publish() {
	config := nsq.NewConfig()
	config.ClientID = "go-nsq-client"
	producer, err := nsq.NewProducer(*nsqd, config)
	check(err)
	producer.SetLogger(log.Default(), nsq.LogLevelWarning)
	check(producer.Ping())

	bodies := make([][]byte, *count)
	for i := range bodies {
		body := strconv.Itoa(*first + i)
		if *size > len(body) {
			body += strings.Repeat(".", *size-len(body))
		}
		bodies[i] = []byte(body)
	}
	const outstanding = 1000
	done := make(chan *nsq.ProducerTransaction, outstanding)
	pending := 0
	acknowledge := func(atMost int) {
		for ; pending > atMost; pending-- {
			check((<-done).Error)
		}
	}
	switch *command {
	case "pub":
		for _, body := range bodies {
			check(producer.PublishAsync(*topic, body, done))
			pending++
			acknowledge(outstanding - 1)
		}
	case "mpub":
		for len(bodies) > 0 {
			n := min(100, len(bodies))
			check(producer.MultiPublishAsync(*topic, bodies[:n], done))
			bodies = bodies[n:]
			pending++
			acknowledge(9)
		}
	case "dpub":
		for _, body := range bodies {
			check(producer.DeferredPublishAsync(*topic, milliseconds(*delay), body, done))
			pending++
			acknowledge(outstanding - 1)
		}
	default:
		log.Fatalf("unknown command %q", *command)
	}
	acknowledge(0)
	producer.Stop()
	check(print.Encode(map[string]int{"acknowledged": *count}))
	flush()
}

// number returns the number at the start of a body.
func number(body []byte) int {
	end := 0
	for end < len(body) && body[end] >= '0' && body[end] <= '9' {
		end++
	}
	n, err := strconv.Atoi(string(body[:end]))
	if err != nil {
		log.Fatalf("a body without a number: %q", body)
	}
	return n
}

func milliseconds(n int) time.Duration {
	return time.Duration(n) * time.Millisecond
}

func is(n, remainder, every int) bool {
	return every > 0 && n%every == remainder
}

func report(message *nsq.Message, action string) {
	lock.Lock()
	defer lock.Unlock()
	check(print.Encode(delivery{string(message.ID[:]), string(message.Body), message.Attempts, action}))
}

func flush() {
	lock.Lock()
	defer lock.Unlock()
	check(out.Flush())
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
