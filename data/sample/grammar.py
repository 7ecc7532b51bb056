"""The sentences of an abstract, by kind of study and by the part they play in it.

How to read the patterns, which `expand.py` parses: an unindented line opens a sentence and says
when it applies (kinds of study or `any`, a part, and perhaps a verdict); `?` after it leaves the
sentence out half of the time. Each indented line is one way to say it, a deeper one continues the
line before. `[a|b]` is a choice, `{name}` a fact from `study.py`, `{3..9}` a random number.
`words.py` has the names; `article_grammar.py` goes on with what only full texts say.
"""

ABSTRACT = """
any background
  {Disease} is a [rare|common|chronic|disabling] [condition|disorder|disease] of the {organ}.
  In {people}, {disease} [remains difficult to treat|is often recognized late|takes a slow course].
  The [burden|course|management] of {disease} [is poorly understood|differs between regions].
  Patients with {disease} [often need repeated care|frequently attend {area} clinics].
  {Disease} accounts for a growing share of {area} [consultations|admissions] in {place}.
  Most {people} with {disease} are [treated|seen] outside of specialized centres.
any background
  [Care|Follow-up] of {people} with {disease} [varies widely|rests on expert opinion].
  Little is known about the long-term outcome of {disease}.
  Despite progress in {area} care, the prognosis of {disease} has changed little.
  The choice of treatment in {disease} is [largely empirical|a matter of local habit].
trial background?
  {Drug} [acts on|binds] the {marker} pathway and [is given once daily|is well absorbed].
  Earlier work suggested that {drug} [modifies|interferes with] {marker} signalling.
  Small studies of {drug} have given conflicting results.
surgery background?
  {Subject} was introduced to shorten operations for {disease}.
  Whether the choice of technique affects recovery after surgery for {disease} is debated.
nursing survey background?
  Nurses play a central part in the care of {people} with {disease}.
  Care on {area} wards depends on good communication.
cohort background?
  It has been proposed that {subject} [precedes|accompanies] {disease}.
genetics background?
  The {gene} gene encodes a receptor for {marker} that is expressed in the {organ}.
  Familial clustering points to a genetic component of {disease}.
diagnostic imaging background?
  Early diagnosis of {disease} [is desirable|would permit earlier treatment] but current tests
      are [slow|costly|invasive].
lab background?
  {Gene} is [abundant|strongly expressed] in the {organ}, but its function is not known.
  Loss of {gene} has been [linked|related] to {disease}.
micro background?
  {Species} is a [frequent|neglected|increasingly reported] cause of {disease}.
kinetics background?
  {Drug} is being developed for {disease}.
case background
  {Disease} rarely presents with {symptom}.
  The coexistence of {disease} and {other_disease} has seldom been described.
trial nursing aim
  We [tested|examined|assessed] whether {subject} [improves|affects] {measure} in {people} with
      {disease}.
  To [compare|evaluate] the effect of {subject} and of {control} on {measure} in {disease}.
  The aim of this trial was to compare {subject} with {control} in {people} with {disease}.
  This [study|trial] investigated the [efficacy|value] of {subject} in {disease}.
surgery aim
  To compare {subject} with {control} in patients operated on for {disease}.
  We [reviewed|compared] the results of {subject} and of {control} in {disease}.
cohort aim
  We [examined|studied] whether {subject} is associated with {event} in {disease}.
  The aim was to [estimate|quantify] the association of {subject} with {event} among {people}
      with {disease}.
genetics aim
  We [tested|examined] whether {subject} is associated with {disease}.
  To investigate the role of {gene} polymorphism in susceptibility to {disease}.
diagnostic aim
  To [determine|assess] the diagnostic accuracy of {subject} for {disease}.
  We evaluated {subject} as a [marker|test] for {disease} in {people}.
imaging aim
  To compare {subject} with {control} for the detection of lesions in {disease}.
  We assessed the diagnostic yield and reader agreement of {subject} in {disease}.
lab aim
  We investigated the role of {gene} in [a mouse model|an experimental model] of {disease}.
  Here we asked whether {gene} controls the release of {marker} by {organ} {cells}.
micro aim
  To [determine|describe] the frequency of {subject} among isolates of {species}.
  We studied the susceptibility of {species} from patients with {disease} to {drug}.
kinetics aim
  To characterize the pharmacokinetics of {drug} in healthy volunteers.
  This study examined the safety and pharmacokinetics of single doses of {drug}.
survey aim
  To explore the views of nurses and physicians on {subject} in {area} care.
  We surveyed staff of {area} wards about {subject}.
review aim
  To summarize the evidence on {drug} for the prevention of {event} in {disease}.
  We [systematically reviewed|pooled] studies of {drug} in {people} with {disease}.
trial methods
  In this [randomized|double-blind|parallel-group] trial, {n} {people} with {disease} were assigned
      to {drug} ({dose} [once|twice] daily, n = {n1}) or {control} (n = {n2}) for {weeks} weeks.
  We randomly assigned {n} {people} with {disease} at {sites} centres to receive {drug} {dose} daily
      (n = {n1}) or {control} (n = {n2}).
  Of {screened} {people} screened, {n} were randomized: {n1} to {drug} ({dose} daily) and {n2} to
      {control}. Treatment lasted {weeks} weeks.
nursing methods
  A [randomized|quasi-experimental] study was conducted on {sites} {area} wards in {place}. {N}
      patients with {disease} received {subject} (n = {n1}) or {control} (n = {n2}).
  {N} patients were allocated to {subject} (n = {n1}) or to {control} (n = {n2}) and were
      followed for {weeks} weeks.
trial nursing methods
  The primary outcome was {measure} at {weeks} weeks; the secondary outcome was {event}.
  {Measure} was the primary [endpoint|outcome], and {event} was a secondary one.
  We measured {measure} at baseline and at week {weeks} and recorded {event}.
surgery methods
  We [reviewed|analysed] the records of {n} patients operated on for {disease} between {year} and
      {last_year}. {Subject} was used in {n1} and {control} in {n2}.
  Between {year} and {last_year}, {n} consecutive patients with {disease} underwent surgery by
      {subject} (n = {n1}) or {control} (n = {n2}).
surgery methods
  The main outcomes were {event} and {measure} at {weeks} weeks.
  Operating time, blood loss, {measure} and {event} were compared.
cohort methods
  We followed {n} {people} with {disease} in {place} for a median of {years} years; {n1} were
      exposed and {n2} were not. [The outcome was|We recorded] {event}.
  This [prospective|registry-based] cohort comprised {n} {people} enrolled from {year} to
      {last_year}: {n1} with {subject} and {n2} without.
genetics methods
  {N1} patients with {disease} and {n2} [unrelated|healthy] controls were genotyped for
      {variant} by [polymerase chain reaction|sequencing].
  In a case-control study from {place}, {n1} cases and {n2} controls were genotyped for {variant}
      in {gene}.
trial nursing methods?
  Analysis was by [intention to treat|originally assigned group] with a significance level of 0.05.
  Two assessors who were unaware of the [groups|results] recorded all outcomes.
  The sample size gave {80..92}% power to detect a difference of half a standard deviation.
cohort methods?
  Estimates were adjusted for age, sex and [centre|duration of disease|year of entry].
diagnostic methods
  {Subject} was measured in {n} consecutive {people} with suspected {disease}, of whom {ill} had
      the disease by the reference standard and {well} did not.
  We enrolled {n} {people} referred to {area} clinics: {ill} with {disease} and {well} without.
      A {subject} level above {cutoff} was regarded as positive.
imaging methods
  {N} patients with {disease} were examined by {subject} and by {control}. {Readers} readers
      [independently|blindly] assessed all images.
  Images of {n} {people} obtained by {subject} were [read|scored] by {readers} blinded radiologists
      and compared with {control}; {lesions} lesions served as the reference.
case case_report
  A {age}-year-old {person} presented with {symptom} of {days} days' duration.
  We report a {age}-year-old {person} who was admitted to a {area} unit because of {symptom}.
case case_report
  Imaging [showed|revealed] {sign}, and the serum {marker} level was {level} (reference, below 40
      ng/mL).
  Laboratory tests showed a serum {marker} level of {level}; imaging disclosed {sign}.
case case_report
  {Disease} was diagnosed, and {she} was treated with {drug} {dose} daily.
  A biopsy of the {organ} confirmed {disease}. Treatment with {drug} ({dose} daily) was started.
case case_report.better
  After {days} days the {marker} level had fallen to {level_after}, and {she} was discharged.
      {She} remained well {months} months later.
  {Her} symptoms resolved, {marker} fell to {level_after} by day {days}, and no relapse occurred
      during {months} months of follow-up.
case case_report.same
  After {days} days {marker} was almost unchanged ({level_after}), and surgery was
      performed. {She} was stable at {months} months.
case case_report.worse
  The {marker} level nevertheless rose to {level_after} by day {days}, and {drug} was stopped.
      {She} recovered slowly over {months} months.
lab methods
  {Gene} knockout mice (n = {n1}) and wild-type littermates (n = {n2}) were exposed to an
      experimental form of {disease}; {marker} was measured in the {organ}.
  We silenced {gene} in {organ} {cells} and compared knockout mice with wild-type littermates (n =
      {n1} each).
lab methods?
  {Marker} was [quantified|measured] by [immunoassay|western blotting|quantitative PCR].
  Cells were treated with {drug} ({micromolar} \u03bcM) for {4..48} h at 37 \u00b0C in 5%
      CO<sub>2</sub>.
micro methods
  {N} isolates of {species} were collected from {place} between {year} and {last_year}; {blood} were
      from blood and {wound} from wounds.
  We tested {n} non-duplicate isolates of {species} ({blood} from blood, {wound} from wounds)
      against
      {drug} by broth microdilution.
kinetics methods
  {N} healthy volunteers received [single|oral] doses of {drug} {dose} (n = {half}) or {double}
      (n = {half}). Blood was sampled for {24..96} h.
survey methods
  A questionnaire on {subject} was sent to {sent} nurses and physicians in {place}; {n} ({rate})
      responded, of whom {nurses} were nurses and {physicians} physicians.
survey methods?
  {Interviews} respondents also took part in semi-structured interviews, which were analysed
      thematically.
review methods
  Databases were searched to {last_year}. Of {found} records, {doubles} were duplicates and {unique}
      were screened; {studies} studies ({trials} randomized, {observational} observational) with {n}
      participants were included.
  We searched [five|four|three] databases for studies published between {year} and {last_year} and
      pooled risk ratios in a random-effects model.
trial nursing surgery results?
  {Completed} of {n} patients completed follow-up.
  Baseline characteristics were similar in the two groups.
  The mean age was {age} years, and {women} of {n} patients were women.
trial nursing surgery results
  Mean {measure} was {m1} {unit} (SD {sd1}) with {subject} and {m2} {unit} (SD {sd2}) with {control}
      (difference {diff} {unit}, 95% CI {diff_ci}; {p}).
  At {weeks} weeks, {measure} was {higher} with {subject} than with {control} ({m1} \u00b1 {sd1} vs
      {m2} \u00b1 {sd2} {unit}; {p}).
  The difference in {measure} between {subject} and {control} was {diff} {unit} (95% CI {diff_ci};
      {p}).
trial nursing surgery results
  {Event} occurred in {e1} of {n1} patients ({pc1}) in the {subject} group and in {e2} of {n2}
      ({pc2}) in the {control} group (risk ratio {ratio}, 95% CI {ratio_ci}; {p_event}).
  There were {e1} [cases|instances] of {event} among {n1} patients with {subject} and {e2} among
      {n2} with {control} ({pc1} vs {pc2}; {p_event}).
surgery results?
  Mean operating time was {minutes} min with {subject} and {minutes_control} min with {control}.
  Median blood loss was {blood} mL with {subject}.
trial results?
  Adverse events were [mild|mostly mild] and [similar in both groups|did not lead to withdrawal].
  {Lost} patients were lost to follow-up; none of the losses was related to treatment.
cohort results
  {Event} occurred in {e1} of {n1} exposed ({pc1}) and {e2} of {n2} unexposed participants
      ({pc2}), giving a risk ratio of {ratio} (95% CI {ratio_ci}; {p_event}).
  The risk of {event} was {lower} in the exposed ({pc1} vs {pc2}; risk ratio {ratio}, 95% CI
      {ratio_ci}).
genetics results
  The variant was carried by {e1} of {n1} cases ({pc1}) and by {e2} of {n2} controls ({pc2};
      {p_event}).
  Carriers numbered {e1} among {n1} cases ({pc1}) and {e2} among {n2} controls ({pc2}), a carriage
      ratio of {ratio} (95% CI {ratio_ci}).
diagnostic results
  Sensitivity was {sens} and specificity {spec}. There were {tp} true-positive, {fp}
      false-positive, {fn} false-negative and {tn} true-negative results.
  At a cutoff of {cutoff}, {tp} of {ill} patients with {disease} and {fp} of {well} without it were
      positive (sensitivity {sens}; specificity {spec}).
diagnostic results
  The positive predictive value was {ppv}, and the negative predictive value was {npv}.
  The area under the curve at this cutoff was {auc}.
imaging results
  {Subject} detected {seen} of {lesions} lesions, {seen_share}, and {control} {old}, {old_share}.
  Of {lesions} lesions, {seen} were seen by {subject} and {old} by {control}.
imaging results
  Agreement between readers was {agreement} (\u03ba = {kappa}, 95% CI {kappa_ci}).
  The most frequent finding was {sign}; reader agreement was {agreement} (\u03ba = {kappa}).
lab results
  {Marker} in the {organ} of knockout mice was {lower} ({fold} \u00b1 {fold_sd}-fold of wild
      type; {p}).
  Loss of {gene} {reduced} the release of {marker} by {organ} {cells} ({fold}-fold; {p}).
lab results?
  {Drug} had [a similar|no further] effect in cells that lacked {gene}.
  The TNF-\u03b1-like activity of the medium was [not affected|unaltered].
micro results
  Resistance to {drug} was found in {resistant} of {n} isolates, {resistant_share}; {susceptible}
      were
      susceptible.
  {Resistant} of {n} isolates were resistant to {drug}. The MIC<sub>50</sub> was {mic50} mg/L and
      the
      MIC<sub>90</sub> {mic90} mg/L.
micro results?
  The {gene} gene was carried by {carriers} of the {resistant} resistant isolates.
kinetics results
  Mean C<sub>max</sub> was {peak} after {dose} and {peak_double} after {double}; the terminal
      half-life
      was {half_life}.
  Peak concentrations ({peak} and {peak_double} after {dose} and {double}) were reached after
      {hours}.
kinetics results
  Exposure rose {proportion} dose. {Events} of {n} volunteers reported [mild headache|mild nausea].
survey results
  {Yes} of {n} respondents, {yes_share}, agreed that {subject} should be part of daily routine, and
      {no} did not.
  Nurses were more likely than physicians to agree (odds ratio {odds}, 95% CI {odds_ci}).
      Overall, {yes} of {n} agreed and {no} did not.
survey results
  The main barrier was {theme}; the main enabler was {theme2}.
  Respondents named {theme} as a barrier and {theme2} as a help.
review results
  The pooled risk of {event} was {lower_than} (risk ratio {ratio}, 95% CI {ratio_ci};
      <i>I</i><sup>2</sup> = {i2}).
  Across {studies} studies the risk ratio for {event} was {ratio} (95% CI {ratio_ci}), with
      heterogeneity of {i2}.
any conclusion
  In conclusion, {finding}.
  We conclude that {finding}.
  Our data [show|indicate|suggest] that {finding}.
  These findings [indicate|suggest] that {finding}.
any conclusion.better?
  [Larger|Longer|Multicentre] studies [should confirm this|are warranted].
trial nursing surgery conclusion.better?
  {Subject} deserves [a place|further study] in {area} care.
trial nursing surgery cohort conclusion.same?
  The [data|findings] do not support a change of practice.
  A small effect cannot be excluded.
trial nursing surgery cohort conclusion.worse?
  Caution is [advised|needed] until further data are available.
  The [reasons|mechanisms] should be studied.
"""

TITLES = """
trial title
  {Subject} versus {control} for {disease} in {people}: a randomized [controlled|clinical] trial
  Effect of {subject} on {measure} in {disease}: a [double-blind|multicentre] trial
  {Subject} for {disease}: results of a randomized trial in {people}
nursing title
  Effect of {subject} on {measure} in {people} with {disease}
  {Subject} for {people} with {disease}: a nursing [study|trial] on {sites} wards
surgery title
  {Subject} and {control} in the surgical treatment of {disease}
  Outcome of {subject} for {disease}: a comparative study of {n} patients
cohort title
  {Subject} and the risk of {event} in {people} with {disease}: a cohort study
  Association of {subject} with {event} in {disease}
genetics title
  {Gene} polymorphism and susceptibility to {disease}: a case-control study
  [Association|Relation] of {subject} with {disease} in {place}
diagnostic title
  Diagnostic accuracy of {subject} for {disease} in {people}
  {Subject} as a marker of {disease}: a [prospective|diagnostic] study
imaging title
  {Subject} for the detection of lesions in {disease}
  {Subject} compared with {control} in {disease}: yield and reader agreement
case title
  {Disease} presenting with {symptom}: [a case report|report of a case]
  [Unusual|Atypical] presentation of {disease} in a {age}-year-old {person}
lab title
  {Gene} [regulates|and the control of] {marker} release in experimental {disease}
  Role of {gene} in {organ} {cells} in a mouse model of {disease}
micro title
  {Subject} in {species} isolates from {place}
  Susceptibility of {species} to {drug}: a survey of {n} isolates
kinetics title
  Pharmacokinetics of {drug} in healthy volunteers
  [Safety|Tolerability] and pharmacokinetics of {drug} after oral administration
survey title
  {Subject} in {area} care: a survey of nurses and physicians
  Views of nurses and physicians on {subject} on {area} wards in {place}
review title
  {Drug} for {disease}: a systematic review and meta-analysis
  {Drug} and {event} in {disease}: a meta-analysis of {studies} studies
"""

FINDINGS = """
trial nursing finding.better
  {subject} improved {measure} and reduced {event} compared with {control}
trial nursing finding.same
  {subject} did not differ from {control} in {measure} or {event}
trial nursing finding.worse
  {subject} was inferior to {control} in {measure} and was followed by more {event}
surgery finding.better
  {subject} gave better {measure} and less {event} than {control}
surgery finding.same
  the results of {subject} and of {control} were similar
surgery finding.worse
  {subject} gave poorer {measure} and more {event} than {control}
cohort finding.better
  {subject} was associated with a lower risk of {event}
cohort finding.same
  {subject} was not associated with {event}
cohort finding.worse
  {subject} was associated with a higher risk of {event}
genetics finding.better
  {subject} was less frequent in {disease} than in controls
genetics finding.same
  {subject} was not associated with {disease}
genetics finding.worse
  {subject} was more frequent in {disease} than in controls
diagnostic finding
  the accuracy of {subject} for {disease} was {accuracy}
imaging finding
  {subject} detected {more} {control}, and reader agreement was {agreement}
case finding.better
  {disease} can present with {symptom} and was followed by recovery under {drug}
case finding.same
  {disease} can present with {symptom}, and {drug} had no clear effect
case finding.worse
  {disease} can present with {symptom} and progressed under {drug}
lab finding
  loss of {gene} {reduced} the release of {marker} in experimental {disease}
micro finding
  {subject} was {rare} in {species} from {place}
kinetics finding
  exposure to {drug} rose {proportion} dose, and single doses were well tolerated
survey finding
  {most} respondents supported {subject}, and {theme} was the main barrier
review finding
  the risk of {event} was {lower_than}
"""
