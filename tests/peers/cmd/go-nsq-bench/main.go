// go-nsq-bench measures how fast go-nsq publishes to one nsqd or consumes from it, and prints the result as a line
// of JSON.
//
// Modes: sync publishes one message and waits for its acknowledgement before the next; flood makes one PublishAsync
// call per message with a bounded number unacknowledged; batch is flood with MPUBs that the caller builds; consume
// finishes messages. The clock runs from the first call to the last acknowledgement, without the connection.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"github.com/nsqio/go-nsq"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("go-nsq-bench: ")

	address := flag.String("nsqd", "127.0.0.1:4150", "TCP address of nsqd")
	topic := flag.String("topic", "bench#ephemeral", "topic to publish to")
	mode := flag.String("mode", "sync", "sync, flood, batch or consume")
	count := flag.Int("count", 10000, "number of messages")
	size := flag.Int("size", 200, "bytes per message")
	outstanding := flag.Int("outstanding", 10000, "flood, batch: publish calls that may be unacknowledged at a time")
	batch := flag.Int("batch", 100, "batch: messages per publish call")
	inFlight := flag.Int("max-in-flight", 1000, "consume: messages in flight")
	version := flag.Bool("version", false, "print the version of go-nsq")
	flag.Parse()

	if *version {
		fmt.Printf("go-nsq-bench (go-nsq v%s)\n", nsq.VERSION)
		return
	}
	if flag.NArg() > 0 || *count < 1 || *size < 1 || *outstanding < 1 || *batch < 1 {
		flag.Usage()
		os.Exit(2)
	}

	if *mode == "consume" {
		report(*mode, *count, consume(*address, *topic, *count, *size, *inFlight))
		return
	}
	producer, err := nsq.NewProducer(*address, nsq.NewConfig())
	check(err)
	producer.SetLogger(log.New(io.Discard, "", 0), nsq.LogLevelError)
	check(producer.Ping())

	body := make([]byte, *size)
	start := time.Now()
	switch *mode {
	case "sync":
		for i := 0; i < *count; i++ {
			check(producer.Publish(*topic, body))
		}
	case "flood":
		flood(*count, *outstanding, func(done chan *nsq.ProducerTransaction) error {
			return producer.PublishAsync(*topic, body, done)
		})
	case "batch":
		bodies := make([][]byte, *batch)
		for i := range bodies {
			bodies[i] = body
		}
		calls := (*count + *batch - 1) / *batch
		*count = calls * *batch
		flood(calls, *outstanding, func(done chan *nsq.ProducerTransaction) error {
			return producer.MultiPublishAsync(*topic, bodies, done)
		})
	default:
		log.Fatalf("unknown mode %q", *mode)
	}
	seconds := time.Since(start).Seconds()
	producer.Stop()

	report(*mode, *count, seconds)
}

func report(mode string, count int, seconds float64) {
	check(json.NewEncoder(os.Stdout).Encode(struct {
		Client   string  `json:"client"`
		Mode     string  `json:"mode"`
		Messages int     `json:"messages"`
		Seconds  float64 `json:"seconds"`
		Rate     float64 `json:"rate"`
	}{"go-nsq", mode, count, seconds, float64(count) / seconds}))
}

// flood makes all calls with at most `outstanding` of them unacknowledged, and returns when all are acknowledged.
func flood(calls, outstanding int, publish func(done chan *nsq.ProducerTransaction) error) {
	// Never full, so that go-nsq's only goroutine for writing and acknowledging never waits here.
	done := make(chan *nsq.ProducerTransaction, outstanding)
	for sent, acked := 0, 0; acked < calls; {
		if sent < calls && sent-acked < outstanding {
			select {
			case transaction := <-done:
				check(transaction.Error)
				acked++
			default:
				check(publish(done))
				sent++
			}
			continue
		}
		check((<-done).Error)
		acked++
	}
}

// consume finishes `count` messages and returns the seconds from the first to the last.
func consume(address, topic string, count, size, inFlight int) float64 {
	config := nsq.NewConfig()
	config.MaxInFlight = inFlight
	consumer, err := nsq.NewConsumer(topic, "bench", config)
	check(err)
	consumer.SetLogger(log.New(io.Discard, "", 0), nsq.LogLevelError)
	done := make(chan float64, 1)
	var start time.Time
	finished := 0
	consumer.AddHandler(nsq.HandlerFunc(func(message *nsq.Message) error {
		if finished == 0 {
			start = time.Now()
		}
		if len(message.Body) != size {
			log.Fatalf("a message of %d bytes", len(message.Body))
		}
		message.Finish()
		finished++
		if finished == count {
			done <- time.Since(start).Seconds()
		}
		return nil
	}))
	check(consumer.ConnectToNSQD(address))
	seconds := <-done
	consumer.Stop()
	<-consumer.StopChan
	return seconds
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
