"""How long the parts of a session's set-up took: traces for OpenTelemetry, if they are wanted.

extra      whether what is needed is installed
setup      what is noted of one set-up, in a worker; plain Python
watch      which set-ups are followed, and when one is over
exporter   spans of it, sent as OTLP over HTTP; the one module that imports OpenTelemetry
"""
