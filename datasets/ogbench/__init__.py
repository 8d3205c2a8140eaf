"""OGBench's datasets (Park, Frans, Eysenbach, Levine 2024, arXiv 2410.20092), as single-task offline RL.

``ogbench:cube-single-noisy-singletask-task1-v0``       the published file, fetched where a network is, with the reward
                                                        of task 1
``ogbench:cube-single-noisy-100k-singletask-task1-v0``  the same kind of data, 100,000 steps, made here by the package's
                                                        own controllers (`generate`)
"""
